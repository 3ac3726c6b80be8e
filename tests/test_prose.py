"""What the README says of the results is what the committed rows and tables say, sentence by sentence."""

import json
import re

import pandas as pd
import pytest

from refinecam_lib import paths
from refinecam_lib.compare import read_rows
from refinecam_lib.metrics import scores
from refinecam_lib.statistics import correlations, paired_test

STANDARD = paths.REFERENCE / "standard"
CAMS = ["GradCAM++", "LayerCAM", "ScoreCAM", "ShapleyCAM", "GuidedGradCAM"]
TRIVIAL = ["RandomCAM", "HalfCAM", "All1sCAM"]


def rows_of(name, folder=STANDARD):
    rows = read_rows(folder / f"{name}.parquet")
    rows = rows[rows["correct"] == True].reset_index(drop=True)
    return rows.join(scores(rows))


def number(value, digits=2):
    """.45, -.03: as the README writes numbers below one."""
    text = f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"
    return re.sub(r"^-(?=\.?0*$)", "", text)


def listed(names):
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def fig1():
    mean = rows_of("rows_fig1").groupby("method")[["average_drop", "adcc", "road", "arcc"]].mean()
    real = [m for m in mean.index if m not in TRIVIAL]
    fooled = {s: [t for t in TRIVIAL if sign * mean.loc[t, s] > max(sign * mean.loc[real, s])]
              for s, sign in (("average_drop", -1), ("adcc", 1))}  # fmt: skip
    yield (
        f"Average Drop puts {listed(fooled['average_drop'])} above every real method, and ADCC puts "
        f"{listed(fooled['adcc'])} there; ARCC gives no trivial map more than {number(mean.loc[TRIVIAL, 'arcc'].max())}, "
        f"and no real method less than {number(mean.loc[real, 'arcc'].min())}."
    )


def stress():
    base, more = rows_of("rows_fig1"), rows_of("rows_stress")
    gauss = more[more["method"] == "CentreGaussian"][["road", "adcc", "arcc"]].mean()
    real = base[~base["method"].isin(TRIVIAL)].groupby("method")["arcc"].mean()
    truth = more[more["method"] == "GroundTruth"]["arcc"].mean()
    above = "above" if gauss["arcc"] > real.max() else "below"
    yield (
        f"a Gaussian at the centre, which sees neither image nor network, has an ARCC of {number(gauss['arcc'])}, {above} "
        f"the best method's {number(real.max())} ({real.idxmax()}); the ground truth itself has {number(truth)}."
    )


def fig3():
    rows = rows_of("rows_fig3a")
    rows["one_minus_average_drop"] = 1 - rows["average_drop"]
    rows["one_minus_complexity"] = 1 - rows["complexity"]
    compared = ["arcc", "road", "coherency", "one_minus_complexity", "adcc", "one_minus_average_drop"]
    table = correlations(rows, compared).set_index(["level", "kind", "score"]).sort_index()
    each = table.loc["explanation", "spearman"]
    best = each.drop(index="arcc")["value"].idxmax()
    rival = each.loc[best]
    yield (
        f"Over {len(rows):,} explanations Spearman's correlation with the truth is {number(each.loc['arcc', 'value'])} for "
        f"ARCC, {number(each.loc['road', 'value'])} for ROAD, {number(each.loc['coherency', 'value'])} for Coherency, "
        f"{number(each.loc['adcc', 'value'])} for ADCC and {number(each.loc['one_minus_average_drop', 'value'])} for "
        f"1 - Average Drop; ARCC's lead over the next best is {number(rival['difference'])} "
        f"[{number(rival['low_difference'])}, {number(rival['high_difference'])}]."
    )


def refined(rows, score):
    pair = rows[(rows["layer"] == 0) & rows["aggregate"].isin(["none", "product"]) & rows["method"].isin(CAMS)]
    return paired_test(pair, score, ["method"], ("none", "product")).set_index("method").loc[CAMS]


def verdict(tests):
    real = tests["p_holm"] < 0.05
    return {sign: listed(tests.index[real & (sign * tests["difference"] > 0)]) for sign in (1, -1)}


def table1():
    rows = rows_of("rows_table1")
    arcc, precision = refined(rows, "arcc"), refined(rows, "average_precision")
    up = verdict(arcc)
    yield (
        f"From the shallowest layer RefineCAM raises ARCC for {up[1]} and lowers it for {up[-1]} (Holm-corrected); the "
        f"average precision against the truth rises for {verdict(precision)[1]} and falls for {verdict(precision)[-1]}."
    )
    pair = rows[(rows["layer"] == 0) & (rows["aggregate"] == "product") & rows["method"].isin(CAMS)]
    undefined = pair["pearson"].isna().groupby(pair["method"]).mean().drop("ScoreCAM")
    yield (
        f"ROAD rises for {verdict(refined(rows, 'road'))[1]}; what falls is Coherency. Masked by their refined map, "
        f"{undefined.min():.0%} to {undefined.max():.0%} of the images leave a gradient method no refined map at all, "
        "which ours counts as a Coherency of 0 and the published code as one half."
    )
    covered = rows[(rows["layer"] == 0) & rows["aggregate"].isin(["none", "product"]) & rows["method"].isin(CAMS)]
    covered = covered.groupby(["method", "aggregate"])["truth_covered"].mean().unstack()
    lost = 1 - covered["product"] / covered["none"]
    yield f"It loses {lost.min():.0%} to {lost.max():.0%} of the map's mass on the true pixels."
    deepest = rows[(rows["layer"] == rows["layer"].max()) & (rows["aggregate"] == "none") & rows["method"].isin(CAMS)]
    deep, shallow = deepest.groupby("method")["arcc"].mean(), rows[(rows["layer"] == 0) & rows["method"].isin(CAMS)]
    shallow = shallow[shallow["aggregate"] == "product"].groupby("method")["arcc"].mean()
    yield (
        f"The plain map of the deepest layer, which most people use, beats it in ARCC for "
        f"{(deep > shallow).sum()} of {len(deep)} methods."
    )


def audit():
    table = pd.read_csv(STANDARD / "table_audit_numbers.csv")
    gain = table[table["claim"] == "RefineCAM beats Base in ARCC"].set_index("condition")
    ours, deep = gain.loc["none, few images"], gain.loc["deep maps"]
    yield (
        f"RefineCAM's claim does not: with RefineCAM's Coherency measured as the published code does, against the deep maps "
        f"of the unmasked image, the mean gain in ARCC is {number(deep['value'])} [{number(deep['low'])}, "
        f"{number(deep['high'])}]; measured as the paper defines it, {number(ours['value'])} [{number(ours['low'])}, "
        f"{number(ours['high'])}] on the same images."
    )
    own = table[table["condition"] == "recommended"]["verdict"].value_counts()
    yield (
        f"Of the {own.sum()} claims {own.get('holds', 0)} hold under our convention, {own.get('fails', 0)} fail and "
        f"{own.get('undecided', 0)} are undecided."
    )
    undefined = table[table["condition"] == "paper"]["undefined"].iloc[0]
    yield f"The paper's equations as printed leave {undefined:.0%} of the ARCC scores undefined."


def photographs():
    rows = rows_of("rows_table1", paths.REFERENCE / "photographs")
    arcc = refined(rows, "arcc")
    shown, n = verdict(arcc), rows[rows["method"] == "LayerCAM"]["image"].nunique()
    yield (
        f"On {n} photographs, with ImageNet weights, RefineCAM's mean ARCC is above Base's for "
        f"{listed(arcc.index[arcc['difference'] > 0])} and below for {listed(arcc.index[arcc['difference'] < 0])}; "
        f"a rise is shown (Holm-corrected) for {shown[1]}, a fall for {shown[-1]}."
    )


FINDINGS = [fig1, stress, fig3, table1, audit, photographs]


def readme():
    return (paths.ROOT / "README.md").read_text(encoding="utf-8")


def words(text):
    return " ".join(text.replace("**", "").split())


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.__name__)
def test_the_readme_says_what_was_found(finding):
    missing = [sentence for sentence in finding() if words(sentence) not in words(readme())]
    assert not missing


def test_no_other_number_of_a_result_stands_in_the_findings():
    """Between the headings `What we found` and the next, every decimal and percentage is in a tested sentence."""
    section = words(re.search(r"## What we found(.*?)\n## ", readme(), re.DOTALL)[1])
    for finding in FINDINGS:
        for sentence in finding():
            section = section.replace(words(sentence), "")
    section = re.sub(r"\]\([^)]*\)|`[^`]*`", "", section)
    assert not re.findall(r"-?\d*\.\d+|\d+ ?%", section)


def test_the_runtimes_of_the_index_are_those_of_the_last_accepted_run():
    books = json.loads((paths.REFERENCE / "quick" / "manifest.json").read_text())["notebooks"]
    for name, entry in books.items():
        row = re.search(rf"\[{name[:2]} {name[3:]}\].*\| (\d+) s \|", readme())
        assert row, f"{name} is not in the README's index"
        assert int(row[1]) == pytest.approx(entry["seconds"], abs=0.5)

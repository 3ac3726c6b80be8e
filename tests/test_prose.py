"""README and docs state what the committed rows and tables say, word by word."""

import functools
import json
import re
import shlex

import pandas as pd
import pytest

from refinecam_lib import paths
from refinecam_lib.analysis.plots import TITLES
from refinecam_lib.analysis.statistics import correlations, paired_test
from refinecam_lib.explanation import CAMS, TRIVIAL
from refinecam_lib.funnybirds.score import per_explanation
from refinecam_lib.funnybirds.score import summary as bird_summary
from refinecam_lib.networks.checkpoints import checkpoint_path
from refinecam_lib.networks.zoo import MODELS
from refinecam_lib.reproduce import __main__ as reproduce
from refinecam_lib.reproduce import parameters
from refinecam_lib.scoring import scores
from refinecam_lib.sweeps import experiments
from refinecam_lib.sweeps.store import look_up

STANDARD = paths.REFERENCE / "standard"
ROWS = {
    "fig1": ("03_trivial_cams", experiments.fig1_plan, True),
    "stress": ("03_trivial_cams", experiments.stress_plan, False),
    "fig3a": ("04_metric_correlation", experiments.table1_plan, True),
    "fig3b": ("04_metric_correlation", experiments.birds_plan, False),
    "table1": ("07_refinecam_benchmark", experiments.table1_plan, False),
}
"""Figure -> its notebook, its plan, and whether it uses only the shallowest layer's Base maps."""

NETWORKS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    "resnet18": "ResNet18",
    "vgg11": "VGG11",
    "swin_tiny": "Swin-Tiny",
    "convnext_tiny": "ConvNeXt-Tiny",
}


@functools.cache
def committed(name, profile="standard", model="efficientnet_lite0"):
    """Return the committed rows of a figure, with the notebook's own parameters. The birds keep all their networks."""
    book, planned, base = ROWS[name]
    values = parameters.chosen(profile, [book])[1][book]
    found = look_up(experiments.planned(planned, values))
    assert not found.missing and found.committed == len(found.rows), f"rows of {name} that are not committed"
    rows = found.rows if name == "fig3b" else found.rows[found.rows["model"] == model]
    return rows[(rows["layer"] == 0) & (rows["aggregate"] == "none")] if base else rows


def rows_of(name, profile="standard", model="efficientnet_lite0", convention="recommended"):
    rows = committed(name, profile, model)
    rows = rows[rows["correct"] == True].reset_index(drop=True)
    return rows.join(scores(rows, convention))


def number(value):
    """Write a number as the pages do: .45, -.03, 1.20."""
    text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
    return re.sub(r"^-(?=\.?0*$)", "", text)


def with_interval(row):
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def listed(names):
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def fig1_means(profile="standard"):
    mean = rows_of("fig1", profile).groupby("method")[["average_drop", "adcc", "road", "arcc"]].mean()
    return mean.loc[list(TRIVIAL)], mean.drop(index=list(TRIVIAL))


def stress_means(profile="standard"):
    return rows_of("stress", profile).groupby("method")["arcc"].mean()


def fig1():
    trivial, real = fig1_means()
    drop = listed(t for t in TRIVIAL if trivial.loc[t, "average_drop"] < real["average_drop"].min())
    adcc = listed(t for t in TRIVIAL if trivial.loc[t, "adcc"] > real["adcc"].max())
    yield f"Average Drop ranks {drop} above every method of the figure. ADCC does so for {adcc}."
    yield (
        f"ARCC is at most {number(trivial['arcc'].max())} for the trivial maps and at least "
        f"{number(real['arcc'].min())} for the methods."
    )


def stress():
    real, more = fig1_means()[1]["arcc"], stress_means()
    side = "above" if more["CentreGaussian"] > real.max() else "below"
    yield f"It has an ARCC of {number(more['CentreGaussian'])}, {side} the best method's {number(real.max())} ({real.idxmax()})."
    yield f"The ground truth has {number(more['GroundTruth'])}."
    real, more = fig1_means("photographs")[1]["arcc"], stress_means("photographs")
    for name, title in {"EdgeDetector": "On photographs an edge detector", "CentreGaussian": "The Gaussian"}.items():
        yield f"{title} has {number(more[name])}, above {listed(real.index[real < more[name]])}."


def correlations_of(rows, truth):
    rows["one_minus_average_drop"] = 1 - rows["average_drop"]
    rows["one_minus_complexity"] = 1 - rows["complexity"]
    compared = ["arcc", "road", "coherency", "one_minus_complexity", "adcc", "one_minus_average_drop"]
    return rows, correlations(rows, compared, truth).set_index(["level", "kind", "score"]).sort_index()


@functools.cache
def truth_correlations():
    return correlations_of(rows_of("fig3a"), "cosine")


@functools.cache
def bird_correlations():
    raw = committed("fig3b")
    raw = raw[raw["status"] != "failed"].reset_index(drop=True)
    rows = raw.join(per_explanation(raw).rename(columns={"score": "funnybirds"})).join(scores(raw))
    rows = rows[(rows["layer"] == 0) & (rows["correct"] == True) & ~rows["method"].isin(TRIVIAL)]
    return raw, *correlations_of(rows[rows["aggregate"] == "none"].reset_index(drop=True), "funnybirds")


def fig3():
    rows, table = truth_correlations()
    each, means = table.loc["explanation", "spearman"], table.loc["method mean", "spearman"]
    rival, road = each.loc[each.drop(index="arcc")["value"].idxmax()], means.loc["road"]
    value = each["value"].map(number)
    yield (
        f"Over {len(rows):,} explanations, Spearman's correlation with the cosine similarity to the ground truth is "
        f"{value['arcc']} for ARCC, {value['road']} for ROAD, {value['coherency']} for Coherency, {value['adcc']} for "
        f"ADCC and {value['one_minus_average_drop']} for 1 - Average Drop."
    )
    lead = rival[["difference", "low_difference", "high_difference"]].set_axis(["value", "low", "high"])
    yield f"ARCC's lead over the next best is {with_interval(lead)}."
    verb = "excludes" if road["low_difference"] > 0 or road["high_difference"] < 0 else "includes"
    yield (
        f"Over the means of the ten methods it is {number(means.loc['arcc', 'value'])} for ARCC and "
        f"{number(road['value'])} for ROAD. The interval of their difference {verb} 0."
    )


def funnybirds():
    raw, rows, table = bird_correlations()
    each = table.loc["explanation", "spearman"]
    others = each.drop(index="arcc")
    rival = others.loc[others["value"].idxmax()]
    text = {name: with_interval(row) for name, row in each.iterrows()}
    yield (
        f"Over {len(rows):,} explanations of birds by {rows['model'].nunique()} networks, Spearman's correlation with the "
        f"FunnyBirds score is {text['arcc']} for ARCC, {text['road']} for ROAD, {text['coherency']} for Coherency, "
        f"{text['adcc']} for ADCC, {text['one_minus_average_drop']} for 1 - Average Drop and "
        f"{text['one_minus_complexity']} for 1 - Complexity."
    )
    verdicts = [("significantly higher than", rival["low_difference"] > 0)]
    verdicts += [("significantly lower than", rival["high_difference"] < 0), ("not significantly different from", True)]
    verdict = next(text for text, true in verdicts if true)
    yield f"{TITLES[each['value'].idxmax()].rstrip(' ↑')}'s is the highest. ARCC's is {verdict} the best of the others."
    means = bird_summary(raw, draws=2).query("layer == 0").groupby(["method", "aggregate"])
    means = means[["score", "completeness"]].mean()
    base = means.xs("none", level="aggregate")
    real, random = base.drop(index=list(TRIVIAL)), base.loc["RandomCAM"]
    fooled = listed(real.index[real["completeness"] < random["completeness"]])
    yield f"RandomCAM has a Completeness of {number(random['completeness'])}, above {fooled}."
    yield (
        f"Its FunnyBirds score is {number(random['score'])}. The best method, {real['score'].idxmax()}, has "
        f"{number(real['score'].max())}."
    )
    gain = (means.xs("product", level="aggregate")["score"] - base["score"]).loc[list(CAMS)]
    above, below = listed(gain.index[gain > 0]), listed(gain.index[gain < 0])
    yield f"RefineCAM's mean score is above Base's for {above}. It is below for {below}."


def refined(rows, score, other="none"):
    pair = rows[(rows["layer"] == 0) & rows["aggregate"].isin([other, "product"]) & rows["method"].isin(CAMS)]
    tests = paired_test(pair, score, ["method"], (other, "product")).set_index("method")
    return tests.loc[[method for method in CAMS if method in tests.index]]


def changed(tests):
    """Return the methods that rise (1) and fall (-1) significantly: by Holm's test and by the interval of the mean."""
    real = (tests["p_holm"] < 0.05) & (tests["low"] * tests["high"] > 0)
    return {sign: tests.index[real & (sign * tests["difference"] > 0)] for sign in (1, -1)}


def table1():
    rows = rows_of("table1")
    names = ("arcc", "road", "coherency", "average_precision", "cosine")
    changes = {name: changed(refined(rows, name)) for name in names}
    up, down = ({name: listed(both[sign]) for name, both in changes.items()} for sign in (1, -1))
    yield f"From the shallowest layer RefineCAM raises ARCC for {up['arcc']} and lowers it for {down['arcc']}."
    yield f"Average precision rises for {up['average_precision']} and falls for {down['average_precision']}."
    yield f"The cosine similarity rises for {up['cosine']} and falls for {down['cosine']}."
    yield f"ROAD rises for {up['road']}."
    yield f"Coherency rises for {up['coherency']} and falls for {down['coherency']}."
    pair = rows[(rows["layer"] == 0) & rows["aggregate"].isin(["none", "product"]) & rows["method"].isin(CAMS)]
    product = pair[pair["aggregate"] == "product"]
    undefined = product["pearson"].isna().groupby(product["method"]).mean()
    assert set(changes["coherency"][-1]) == set(CAMS) - {"ScoreCAM"}, "the page says `these methods`"
    yield (
        f"For these methods the masked image's map is blank for {undefined.drop('ScoreCAM').min():.0%} to "
        f"{undefined.max():.0%} of the images (ScoreCAM: {undefined['ScoreCAM']:.0%})."
    )
    table = pd.read_csv(STANDARD / "table_audit_numbers.csv")
    gain = table[table["claim"] == "RefineCAM beats Base in ARCC"].set_index("condition")
    text = {name: with_interval(row) for name, row in gain.iterrows()}
    yield f"Our convention counts it as 0, and the mean gain in ARCC over the methods is {text['recommended']}."
    yield (
        "The published code's convention counts it as one half and halves ROAD, and the mean gain is "
        f"{text['published_code']}."
    )
    yield (
        f"The mean gain is {text['deep maps']} with this defect and {text['none, few images']} without it, on the same "
        "images and methods."
    )
    covered = pair.groupby(["method", "aggregate"])["truth_covered"].mean().unstack()
    lost = 1 - covered["product"] / covered["none"]
    yield f"RefineCAM lowers the mean of the map on the object by {lost.min():.0%} to {lost.max():.0%}."
    deepest = rows[(rows["layer"] == rows["layer"].max()) & (rows["aggregate"] == "none") & rows["method"].isin(CAMS)]
    deep, shallow = (part.groupby("method")["arcc"].mean() for part in (deepest, product))
    yield f"It has a higher ARCC than RefineCAM for {(deep > shallow).sum()} of {len(deep)} methods."


def resnet18():
    rows = rows_of("table1", model="resnet18")
    arcc, precision = (changed(refined(rows, score)) for score in ("arcc", "average_precision"))
    yield (
        f"RefineCAM raises ARCC for {listed(arcc[1])} and lowers it for {listed(arcc[-1])}, on "
        f"{rows['image'].nunique()} images."
    )
    yield f"Average precision rises for {listed(precision[1])} and falls for {listed(precision[-1])}."
    other = changed(refined(rows_of("table1", model="resnet18", convention="published_code"), "arcc"))
    yield f"Under the published code's convention ARCC rises for {listed(other[1])} and falls for {listed(other[-1])}."
    product = changed(refined(rows, "arcc", "geometric_mean"))
    yield f"The product has a higher ARCC than the geometric mean for {listed(product[1])} and a lower one for {listed(product[-1])}."


def audit():
    table = pd.read_csv(STANDARD / "table_audit_numbers.csv")
    own = table[table["condition"] == "recommended"]
    verdicts = own["verdict"].value_counts()
    yield (
        f"Under our convention {verdicts.get('holds', 0)} of the {len(own)} claims hold, {verdicts.get('fails', 0)} fail "
        f"and {verdicts.get('undecided', 0)} are undecided."
    )
    for claim in own[own["verdict"] == "fails"]["claim"]:
        yield f"- {claim}"
    geometric = table[table["claim"] == "the product beats the geometric mean"]
    assert (geometric["high"] < 0).all() and geometric["condition"].nunique() > 10
    yield "The geometric mean beats the product under every convention and every defect."
    undefined = table[table["condition"] == "paper"]["undefined"].iloc[0]
    yield f"The paper's equations as printed leave {undefined:.0%} of the ARCC scores undefined."


def rounding():
    table = pd.read_csv(STANDARD / "table_rounding.csv")
    table["moved"] = (table["share"] * table["rows"]).round().astype(int)
    networks = table.groupby("model", sort=False)[["moved", "rows"]].sum()
    each = ", ".join(f"{r.moved} of {r.rows} on {NETWORKS[name]}" for name, r in networks.iterrows())
    product = table[table["aggregate"] == "product"]
    yield (
        f"On {table['rows'].max()} images per network, {table['moved'].sum()} of {table['rows'].sum()} rows change by more "
        f"than .001: {each}."
    )
    yield f"Of RefineCAM's rows, {product['moved'].sum()} of {product['rows'].sum()} change."


def photographs():
    rows = rows_of("table1", "photographs")
    arcc = refined(rows, "arcc")
    up, down = (listed(changed(arcc)[sign]) for sign in (1, -1))
    n, few = (rows[rows["method"] == method]["image"].nunique() for method in ("LayerCAM", "ScoreCAM"))
    above, below = listed(arcc.index[arcc["difference"] > 0]), listed(arcc.index[arcc["difference"] < 0])
    yield f"We measured {n} photographs ({few} for ScoreCAM) with ImageNet weights."
    yield f"RefineCAM's mean ARCC is above Base's for {above}. It is below for {below}."
    yield f"The rise is significant for {up}, the fall for {down}."


def summary():
    """The lines of the README's table."""
    table = pd.read_csv(STANDARD / "table_audit_numbers.csv").set_index("claim")
    verdict = table[table["condition"] == "recommended"]["verdict"]
    trivial, real = fig1_means()
    yield (
        "| Trivial maps fool common metrics, not ARCC (Fig. 1) | "
        f"**{verdict['no trivial map beats the average CAM in ARCC']}** for the paper's three maps: their ARCC is at most "
        f"{number(trivial['arcc'].max())}, every method's is at least {number(real['arcc'].min())}. A Gaussian at the "
        f"centre, which ignores the network, has {number(stress_means()['CentreGaussian'])} |"
    )
    each = truth_correlations()[1].loc["explanation", "spearman"]["value"]
    rival = each.drop(index="arcc").idxmax()
    yield (
        "| ARCC agrees best with the ground truth (Fig. 3a) | "
        f"**{verdict['ARCC agrees with the truth better than any other score']}** over single explanations: Spearman's "
        f"correlation is {number(each['arcc'])}, the next best is {TITLES[rival].rstrip(' ↑')}'s {number(each[rival])} |"
    )
    each = bird_correlations()[2].loc["explanation", "spearman"]
    rival = each.drop(index="arcc")["value"].idxmax()
    assert each.loc[rival, "high_difference"] < 0, "the table says that the claim fails"
    yield (
        "| ARCC agrees best with the FunnyBirds score (Fig. 3b) | **fails** on this project's birds: ARCC has "
        f"{number(each.loc['arcc', 'value'])}, {TITLES[rival].rstrip(' ↑')} has {number(each.loc[rival, 'value'])} |"
    )
    rows = rows_of("table1")
    arcc, precision = changed(refined(rows, "arcc")), changed(refined(rows, "average_precision"))
    assert not len(precision[-1]), "the table says that it falls for none"
    yield (
        f"| RefineCAM raises ARCC (Table 1) | **{verdict['RefineCAM beats Base in ARCC']}**: ARCC rises for {len(arcc[1])} of "
        f"{len(CAMS)} methods and falls for {len(arcc[-1])}. But average precision against the ground truth rises for "
        f"{len(precision[1])} of {len(CAMS)} and falls for none |"
    )
    rows = rows_of("table1", model="resnet18")
    arcc, precision = (changed(refined(rows, score)) for score in ("arcc", "average_precision"))
    yield (
        f"| The same on the paper's ResNet18, without ScoreCAM | **depends on the method**: ARCC rises for {listed(arcc[1])} "
        f"and falls for {listed(arcc[-1])}. Average precision rises for {listed(precision[1])} and falls for "
        f"{listed(precision[-1])} |"
    )
    arcc = refined(rows_of("table1", "photographs"), "arcc")
    assert not any(len(methods) for methods in changed(arcc).values()), "the table says that nothing is significant"
    yield (
        f"| The same on photographs (Table 1) | **not shown**: the mean rises for {(arcc['difference'] > 0).sum()} of "
        f"{len(CAMS)} methods and falls for {(arcc['difference'] < 0).sum()}. No change is significant |"
    )
    assert (table.loc["the product beats the geometric mean", "high"] < 0).all()
    yield (
        f"| The product is the best aggregate (Table 2) | **{verdict['the product beats the geometric mean']}**: the "
        "geometric mean beats it under every convention and every defect of the published code |"
    )


FINDINGS = [fig1, stress, fig3, funnybirds, table1, resnet18, rounding, audit, photographs]


def page(name):
    return (paths.ROOT / name).read_text(encoding="utf-8")


def words(text):
    return " ".join(text.replace("**", "").split())


def texts():
    """Yield the functions above with the page that must state what they yield."""
    yield [summary], words(re.search(r"## What we found(.*?)\n## ", page("README.md"), re.DOTALL)[1])
    yield FINDINGS, words(page("docs/findings.md"))


@pytest.mark.parametrize("finding", [summary, *FINDINGS], ids=lambda finding: finding.__name__)
def test_the_pages_state_what_was_found(finding):
    (text,) = (text for findings, text in texts() if finding in findings)
    missing = [sentence for sentence in finding() if words(sentence) not in text]
    assert not missing


def test_the_findings_have_no_other_number_of_a_result():
    """Every decimal and percentage there is in a tested sentence."""
    for findings, text in texts():
        for sentence in (sentence for finding in findings for sentence in finding()):
            text = text.replace(words(sentence), "")
        text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)
        assert not re.findall(r"-?\d*\.\d+|\d+ ?%", text)


def test_the_index_has_the_runtimes_of_the_last_accepted_run():
    books = json.loads((paths.REFERENCE / "standard" / "manifest.json").read_text())["notebooks"]
    for name, entry in books.items():
        row = re.search(rf"\[{name.replace('_', ' ', 1)}\].*\| (\d+) s \|", page("README.md"))
        assert row, f"{name} is not in the README's index"
        assert int(row[1]) == pytest.approx(entry["seconds"], abs=0.5)


def test_hand_measured_numbers_are_those_written_down():
    measured = json.loads(page("docs/measured.json"))
    m = measured["installation"]
    install = words(page("docs/installation.md"))
    for sentence in (
        f"downloads {m['download_gb']} GB ({m['cuda_gb']} GB are CUDA's libraries)",
        f"takes {m['disk_gb']} GB of disk and took {m['seconds']} s",
        f"beside a CPU build of torch `.venv` takes {m['venv_beside_cpu_torch_gb']} GB",
        f"compiles for about {measured['imputation_compiles_seconds']} s",
    ):
        assert sentence in install
    assert f"takes {measured['reproduce_minutes']} minutes on two cores, not counting" in words(page("README.md"))


def test_the_speed_is_that_of_the_committed_benchmark():
    rows = json.loads(page("docs/benchmark.json"))["rows"]
    six = {row["network"]: row["ratio"][0] for row in rows if row["part"] == "six" and row["threads"] == 1}
    sentence = f"{six['efficientnet_lite0']:.0f} times faster than public code on EfficientNet-Lite0 and {six['resnet18']:.0f} times on ResNet18"
    assert sentence in words(page("README.md"))
    assert all(row["agrees"] for row in rows)


def test_the_networks_have_the_accuracy_of_their_cards():
    rows = page("docs/training.md").splitlines()
    for name in MODELS:
        card = json.loads(checkpoint_path(name).with_suffix(".json").read_text())
        fresh, hours = card["fresh"], card["seconds_in_all"] / 3600
        cells = (
            f"| {100 * fresh['accuracy']:.1f} % | {100 * fresh['size']['small']['accuracy']:.1f} % | {hours:.1f} h |"
        )
        (row,) = (row for row in rows if row.startswith(f"| {NETWORKS[name]} |"))
        assert cells in row


def test_every_command_of_the_pages_names_existing_notebooks_and_parameters():
    commands = re.findall(r'make reproduce ARGS="([^"]*)"', page("README.md"))
    assert len(commands) > 2
    for command in commands:
        given = [word for word in shlex.split(command) if word != "--fresh"]  # it would run, despite --list
        assert reproduce.main([*given, "--list"]) == 0, command
    assert reproduce.main(["--only", "00", "--set", "own_image=x", "--list"]) == 2, "--list checks parameters"

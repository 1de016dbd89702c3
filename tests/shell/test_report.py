import copy
import re
import subprocess
import sys

import numpy as np
import pytest

from lustral.shell.report import render
from reports import EPS, LEVELS, Page, decoded, pictures, results, row, suite


@pytest.fixture(scope="module")
def html() -> str:
    return render(results(), pictures())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_a_page_needs_nothing_but_itself(html, page):
    links = page.values("src") + page.values("href") + page.values("xlink:href") + page.values("srcset")
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)|https?://", html)
    assert any("default-src 'none'" in value for value in page.values("content"))


def test_tags_are_balanced_and_references_lead_somewhere(html, page):
    assert page.unbalanced == []
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    labels = " ".join(page.values("aria-labelledby")).split()
    assert {*re.findall(r'href="#([^"]+)"', html), *re.findall(r"url\(#([^)]+)\)", html), *labels} <= set(ids)


def test_every_value_of_a_row_is_in_the_tables(page):
    assert page.table_row("Fixed noise", "", "58 %") == [
        *("Fixed noise", "", "58 %", "[48, 66]", "93 %", "60 %", "[50, 69]", "52 %", "74 %", "76 %", "100"),
        "1,299,999",
    ]
    assert page.table_row("ADP", "Fixed noise") == [
        *("ADP", "Fixed noise", "—", "exact (checkpointed)", "cross-entropy", "Linf 0.1875", "15", "8", "—", "—", "16"),
        *("1", "known", "100", "20", "mean softmax of 4", "0.1874", "3", "12.3", "1,234,567", "65,432"),
    ]
    assert page.table_row("ADP", "Exact", "0.25")[:4] == ["ADP", "Exact", "0.25", "44 % [34, 52]"]


def test_the_head_says_how_to_make_the_run_again(page):
    for fact in ("5f1d9c0ab7e34f2296c1d0e8a4b37c61", "lustral demo", "torch 2.13.0", "9f86d081884c7d65", "2 min 51 s"):
        assert fact in page.words()
    assert "100 of digits, test split" in page.words()


def test_stages_that_a_system_lacks_are_dashes(page):
    blind = [row for row in page.rows if row[0] == "Blind"]
    assert len(blind) == 3
    assert [set(row[1:]) <= {"", "—"} for row in blind] == [True, False, True]


def test_the_verdict_is_the_exact_attack(page):
    assert (
        "Of 100 test images of digits, changed within Linf ε = 0.1875 (47.8/255 per pixel), these shares are still "
        "classified correctly: the undefended classifier 0 %; ADP 71 % [61, 79] (95 % without an attack) and "
        "DiffPure SDE 64 % [54, 72] (94 %) against the exact attack."
    ) in page.words()
    assert "Lowest on record: ADP 58 % (fixed noise)" in page.words()


WITHIN = (
    "Of 100 test images of digits, changed within Linf ε = 0.1875 (47.8/255 per pixel), "
    "these shares are still classified correctly"
)


@pytest.mark.parametrize(
    ("kept", "verdict"),
    [
        (
            {"adp": ("clean", "exact")},
            f"{WITHIN}: ADP 71 % [61, 79] (95 % without an attack) against the exact attack.",
        ),
        ({"adp": ("blind", "bpda")}, f"{WITHIN}: ADP 83 % [73, 91] against the attack “BPDA”."),
        ({"undefended": ("exact",)}, f"{WITHIN}: the undefended classifier 0 %."),
        (
            {"adp": ("clean", "null")},
            "No attack is on record in this run. Of 100 test images of digits these shares are classified correctly: "
            "ADP 95 % [85, 100].",
        ),
        (
            {"adp": ("clean",), "undefended": ("clean",)},
            "are classified correctly: Undefended 97 % [87, 100] and ADP 95 % [85, 100].",
        ),
    ],
    ids=["one defended", "no exact attack", "undefended only", "no attack", "no attack on two"],
)
def test_the_verdict_of_a_part_of_a_run(kept, verdict):
    rows = [r for r in results()["rows"] if r["group"] == "main" and r["stage"] in kept.get(r["system"], ())]
    assert verdict in Page(render(results() | {"rows": rows}, {})).words()


def test_checks_are_told_in_words_and_not_by_colour_alone(page):
    words = page.words()
    assert "✓ holds ADP Blind 91 % ≥ BPDA 83 % ≥ Exact 71 %" in words
    assert "✗ fails DiffPure SDE an unbounded attack reaches 0: 2 %" in words
    assert "1 of 2 ordering checks fails" in words
    assert page.table_row("ADP", "DiffPure SDE")[2:] == ["Exact", "12", "5", "0.14", "—", "—", "no clear difference"]


@pytest.mark.parametrize(
    ("test", "reading"),
    [
        ({"p": 0.3, "difference": [-0.14, -0.18, -0.1]}, "DiffPure SDE is better"),
        ({"p": 0.3, "p_flip": 0.2, "difference": [-0.14, -0.18, -0.1]}, "no clear difference"),
        ({"p": 0.01, "difference": [0.01, -0.02, 0.04]}, "no clear difference"),
        ({"p": 0.01}, "ADP is better"),
    ],
    ids=["the interval", "the interval, but no test", "the interval before p", "p where there is no interval"],
)
def test_two_systems_are_told_apart_by_the_interval_of_their_difference(test, reading):
    found = results()
    found["paired"] = [found["paired"][0] | test]
    assert Page(render(found, {})).table_row("ADP", "DiffPure SDE")[-1] == reading


def test_the_p_values_behind_a_reading_are_shown():
    found = results()
    found["paired"] = [found["paired"][0] | {"p": 0.0004, "difference": [-0.14, -0.18, -0.1], "p_flip": 0.031}]
    row = Page(render(found, {})).table_row("ADP", "DiffPure SDE")
    assert row[5:] == ["< 0.001", "−14 [−18, −10]", "0.031", "DiffPure SDE is better"]


def test_a_rise_that_chance_explains_holds_and_says_so():
    found = results()
    found["ordering"] = [
        {"system": "adp", "claim": "exact ≥ fixed", "values": [0.2, 0.21], "holds": True, "chance": True}
    ]
    assert "✓ holds, within chance ADP Exact 20 % ≥ Fixed noise 21 %" in Page(render(found, {})).words()


def test_columns_that_say_nothing_are_left_out():
    rows = [row("adp", "exact", 0.6, null=None, worst_of={}, majority_of={}, mean_logit_of={})]
    head = Page(render(results() | {"rows": rows}, {})).rows[0]
    assert head == ["Stage", "0255075100", "Accuracy", "95 %", "Images", "Network rows"]


def test_a_system_says_what_it_is():
    about = {"adp": "noise, then steps along the score; classifier digits-cnn, one decision"}
    assert about["adp"] in Page(render(results() | {"about": about}, {})).words()


@pytest.mark.parametrize(
    ("accuracy", "images", "text"),
    [
        (0.714, 100, "71 %"),
        (0.714, 597, "71.4 %"),
        (1.0, 597, "100 %"),
        (0.0, 100, "0 %"),
        (0.9966, 100, "99.7 %"),
        (0.99966, 5000, "99.97 %"),
        (0.001, 100, "0.1 %"),
    ],
)
def test_nearly_all_is_never_rounded_to_all(accuracy, images, text):
    one = row("adp", "exact", accuracy, images=images)
    assert Page(render(results() | {"rows": [one]}, {})).table_row("Exact")[2] == text


def test_a_system_with_a_hostile_name_is_only_text():
    name = '<script>alert("$x$ & y")</script>'
    found = results()
    for item in (*found["rows"], *found["ordering"]):
        item["system"] = item["system"].replace("adp", name)
    found["paired"][0]["a"] = name
    found["rows"].append(row(name, "<b>$stage", 0.5))
    found |= {"title": name, "notes": [name], "command": name, "threat": {"norm": name, "eps": EPS, "why": name}}
    hostile = render(found, pictures(systems=(name,)))
    page = Page(hostile)
    assert "<script" not in hostile
    assert "<b>$" not in hostile
    assert page.text.count(name) > 10
    assert page.unbalanced == []


@pytest.mark.parametrize(
    "empty", [{}, {"rows": [], "ordering": [], "paired": [], "notes": []}], ids=["absent", "empty"]
)
def test_a_run_without_results_is_still_a_page(empty):
    page = Page(render({"title": "Nothing yet", **empty}, {}))
    assert page.unbalanced == []
    assert "No attack is on record in this run." in page.words()
    assert not {"svg", "img", "table"} & set(page.tags)


def test_plots_without_rows_are_left_out(html):
    def titles(html: str) -> list[str]:
        return re.findall(r"<title id=\"([\w-]+)-title\">", html)

    assert titles(html) == ["stages", "eps", "t-star", "trajectory"]
    main = [r for r in results()["rows"] if r["group"] == "main"]
    assert titles(render(results() | {"rows": main}, {})) == ["stages"]


def test_the_curve_over_eps_takes_its_ends_from_the_main_table(html):
    (shown,) = re.findall(r'<desc id="eps-desc">(.*?)</desc>', html, re.DOTALL)
    points = "0: 95 % [85, 100], 0.0625: 90 % [80, 98], 0.1875: 71 % [61, 79], 0.25: 44 % [34, 52]."
    assert shown.strip() == f"ADP, Exact: {points}"


def test_plots_follow_the_colours_of_the_page(html):
    plots = re.findall(r'<svg class="plot".*?</svg>', html, re.DOTALL)
    used = set(re.findall(r"var\(--(\w+)\)", "".join(plots)))
    assert used == {"s0", "s1", "s2", "muted", "grid", "paper"}
    assert set(re.findall(r"#[0-9a-f]{6}\b", "".join(plots))) <= {"#ffffff"}
    assert all(f"--{name}:" in html for name in used)


def test_many_systems_still_look_different():
    found = results() | {"rows": [row(f"system {i}", "exact", 0.5) for i in range(20)]}
    key = re.search(r'<ul class="key">.*?</ul>', render(found, {}), re.DOTALL)[0]
    looks = re.findall(r'<path d="([^"]+)" fill="var\(--(s\d)\)"', key)
    assert len(looks) == len(set(looks)) == 20


@pytest.mark.parametrize(("shape", "mode"), [((1, 8, 8), "L"), ((3, 32, 32), "RGB"), ((3, 5, 40), "RGB")], ids=str)
def test_pictures_of_any_size_are_enlarged_without_smoothing(shape, mode):
    shown = pictures(shape, systems=("adp",))
    shown["adp/clean"][0, 0, 0, :2] = (np.nan, 1.3)
    factor = -(-96 // max(shape[1:]))
    first = decoded(render({"title": "Pictures"}, shown))[0]
    assert first.mode == mode
    pixels = np.asarray(first).reshape(shape[1] * factor, shape[2] * factor, -1)
    small = np.nan_to_num(shown["adp/clean"][0]).clip(0, 1).transpose(1, 2, 0)
    for dy, dx in ((0, 0), (factor - 1, factor - 1)):
        assert np.abs(pixels[dy::factor, dx::factor] / 255 - small).max() <= 0.5 / 255 + 1e-9


def test_the_change_is_amplified_about_mid_grey_by_the_gain_that_is_stated():
    shown = pictures(systems=("adp",))
    html = render({"title": "Pictures"}, shown)
    assert "amplified 2.6 times" in Page(html).words()  # 0.5 / 0.1875, rounded down
    change = np.asarray(decoded(html)[2])[::12, ::12] / 255
    expected = 0.5 + 2.6 * (shown["adp/attacked"] - shown["adp/clean"])[0, 0]
    assert np.abs(change - expected).max() <= 0.5 / 255 + 1e-9


def test_pictures_say_what_the_classifier_said():
    html = render({"title": "Pictures"}, pictures(systems=("adp",)))
    rows = [[" ".join(cell.split()) for cell in row] for row in Page(html).rows if row[0] in "13"]
    assert rows == [["3", "✓ 3", "✗ 8", "", "✓ 3"], ["1", "✓ 1", "✗ 7", "", "✗ abstained"]]
    assert 'alt="attacked image: 8, wrong"' in html


def test_labels_have_their_names_where_the_set_has_some():
    found, shown = results(), pictures(systems=("adp",))
    found["data"]["classes"] = ["zero", "one", *(f"class {i}" for i in range(2, 9))]
    shown["y"], shown["adp/said"] = np.array([1, 9]), np.array([[1, 0, -1], [9, 9, 1]])
    text = Page(render(found, shown)).words()
    assert "one ✓ one ✗ zero ✗ abstained" in text
    assert "9 ✓ 9 ✓ 9 ✗ one" in text  # a label beyond the names keeps its number


def test_a_picture_that_nothing_purified_is_not_shown_twice():
    shown = pictures(systems=("undefended",))
    shown["undefended/purified"] = shown["undefended/attacked"]
    assert "purified" not in [cell for row in Page(render({"title": "Pictures"}, shown)).rows for cell in row]


def test_a_run_without_an_attack_shows_what_purification_does():
    shown = pictures(systems=("adp",))
    shown["adp/attacked"] = shown["adp/clean"]
    page = Page(render({"title": "Pictures"}, shown))
    assert page.rows[0] == ["truth", "clean", "purified"]
    assert "One image while it is purified" in page.words()
    assert "attack" not in page.words().partition("Findings")[0].partition("Glossary")[0].replace("No attack is on", "")


def test_a_film_is_thinned_to_ten_frames_with_both_ends(page):
    assert page.words().count("attacked step 3 step 7 step 10 step 13 step 17 step 20 step 23 step 27 purified") == 2


def test_the_same_results_give_the_same_page_and_stay_as_they_were(html):
    found, shown = results(), pictures()
    before = copy.deepcopy((found, shown))
    assert render(found, shown) == html
    assert found == before[0]
    assert all(np.array_equal(shown[name], before[1][name]) for name in before[1])


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, lustral.shell.report; assert not {'matplotlib', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_withheld_numbers_are_nowhere_and_a_box_says_why():
    html = render(suite(), {})
    page = Page(html)
    assert not re.search(r"\b3[68] %|37\.91|36\.13", page.text + " ".join(page.values("aria-label")))
    assert "its robust accuracy is withheld. The evaluation contradicts itself in red-one." in page.words()
    assert "What it means and what to do: red-one." in page.words()
    assert "The robust accuracy of DiffPure SDE is withheld." in page.words()
    assert [row[2] for row in page.rows if row[0] in ("Exact", "Worst case")] == [
        "50 %",
        "45 %",
        "withheld",
        "withheld",
    ]
    assert page.unbalanced == []


def test_numbers_shown_in_spite_of_a_red_finding_are_marked():
    page = Page(render(suite(allow_red=True), {}))
    assert "DiffPure SDE 38 % [28, 46] (90 %) (red finding) in the worst case of all attacks." in page.words()
    assert "DiffPure SDE 36 %" not in page.words()
    assert "✗ Marked DiffPure SDE" in page.words()
    marked = [row[2] for row in page.rows if row[0] in ("Exact", "Worst case")]
    assert marked == ["50 %", "45 %", "36 % held", "38 % held"]


def test_the_worst_case_is_the_number_and_controls_stand_for_fewer_images():
    page = Page(render(suite(), {}))
    assert "correctly: ADP 45 % [35, 53] (90 % without an attack) in the worst case of all attacks." in page.words()
    assert "Lowest on record" not in page.words()
    assert "(or of those stated) counts. Controls stand for fewer images than the 100 of the run" in page.words()
    assert "lustral-smoke-1" in page.words()
    assert page.table_row("Worst case", "", "45 %")[7:12] == ["62 % at 12", "52 %", "74 %", "76 %", "100"]
    assert page.table_row("APGD, targeted")[11] == "61 of 100"
    assert "2 findings are not green: read them before you quote a number." in page.words()


def test_findings_are_red_then_amber_then_folded_green():
    html = render(suite(), {})
    found = html[html.index('<section id="findings">') :]
    at = [found.index(f"It is {level}.", found.index("1 red, 1 amber, 1 green")) for level in reversed(LEVELS)]
    assert at == sorted(at)
    assert [found.rfind("<details>", 0, where) > found.rfind("</ul>", 0, where) for where in at] == [False, False, True]


def test_details_tell_every_way_of_counting():
    page = Page(render(suite(), {}))
    assert page.table_row("single", "1", "45 % [35, 55] (45 %)")[3] == "33 % [23, 43]"
    assert page.table_row("majority", "5") == ["majority", "5", "51 % [41, 61]", "—"]
    assert page.table_row("DiffBreak MV.Rob") == ["DiffBreak MV.Rob", "40 % [30, 50]", "no look lost"]
    assert not [row for row in page.rows if row[0].startswith("DiffHammer")]  # too few draws for any system
    assert page.table_row("ADP", "Worst case", "45 % [40, 50]")[3] == "45 % [20, 70]"
    assert [row[0] for row in page.rows if row[0] in ("9", "10")] == ["9", "10"]
    assert "0 of 20 right: 2 images. 7 of 20 right: 1 image. 20 of 20 right: 1 image. " in page.values("aria-label")
    assert page.table_row("ADP", "4", "✓ yes")[3:] == [
        *("0", "6.6e-10", "0.73", "2: 0.83, 4: 0.92", "100 %, 12 % of 8", "25 %", "0")
    ]
    assert Page(render(suite(allow_red=True), {})).table_row("ADP", "DiffPure SDE")[6] == "+7 [−1, +15]"


def test_the_cost_curve_is_there_only_with_data():
    found = suite()
    (shown,) = re.findall(r'<desc id="cost-desc">(.*?)</desc>', render(found, {}), re.DOTALL)
    assert shown.strip() == "ADP: 100: 50 %."
    found["details"]["adp"]["cost_curve"] = []
    assert "cost-desc" not in render(found, {})


def test_many_systems_share_a_limit_of_pictures():
    systems = [f"system {i}" for i in range(7)]
    shown = {name: np.repeat(value, 4, axis=0) for name, value in pictures(systems=systems).items()}
    grids = Page(render({"title": "Pictures"}, shown)).rows
    assert len(grids) == 7 * (1 + 2)


def test_a_finding_says_on_the_page_itself_what_it_means():
    found = suite()
    found["findings"]["diffpure-sde"][-1]["name"] = "null-control"
    found["withheld"] = {"diffpure-sde": ["null-control"]}
    html = render(found, {})
    page = Page(html)
    assert 'What it means and what to do: <a href="#finding-1-null-control">null-control</a>.' in html
    assert 'id="finding-1-null-control"' in html
    assert "Looking often and keeping the best is worth something even without a gradient." in page.words()
    assert "Check the sign of the loss and finite-difference; run" in page.words()  # files are no links here
    assert page.unbalanced == []


def test_images_that_were_given_are_said_to_be():
    found = results()
    found["data"] = {"name": "given", "split": "given", "images": 6}
    page = Page(render(found, {}))
    assert "Of 6 images that were given, changed within" in page.words()
    assert "of given" not in page.words()


def test_an_option_is_spelled_as_it_is():
    assert "shown here because --allow-red (in Python allow_red) asked for it" in render(suite(allow_red=True), {})

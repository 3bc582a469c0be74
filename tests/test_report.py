"""The report's words, its escaping, and one look at it in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import fake_run
import polars as pl
import pytest

from comkd_ray import arms as arms_room
from comkd_ray import joint_report, report, results, run
from comkd_ray.errors import UserError
from comkd_ray.findings import findings, sentences
from comkd_ray.markup import Html, join, table, tag, text
from comkd_ray.planner import seeds_needed

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


def body(path: Path) -> str:
    """The page without plotly.js and without data, tags included."""
    page = path.read_text(encoding="utf-8")
    return re.sub(r"<script.*?</script>", "", page[page.index("<body>") :], flags=re.DOTALL)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    note = "Does <b>IFAlign</b> earn it? 象 & Größe"
    tree = fake_run.study_tree(fake_run.SPACE, note=note)
    return fake_run.write(tmp_path / "run", fake_run.searched_arms(), tree, fake_run.provenance())


def test_report_is_one_small_file_with_every_part_in_order(study: Path) -> None:
    path = report.build(study)
    assert path == study / "report.html"
    assert path.stat().st_size < 15 * 2**20
    titles = re.findall(r"<h2>(.*?)</h2>", body(path))
    assert titles == [
        "Reference rows",
        "Published numbers",
        "Search history",
        "Parallel coordinates",
        "Importance",
        "IFAlign \u00d7 EduAttention",
        "Learning curves",
        "Accuracy and size",
        "Cost",
        "Provenance",
    ]
    assert body(path).count('class="plot"') == 7


def test_nothing_from_the_data_becomes_markup(study: Path) -> None:
    words = body(report.build(study))
    assert "&lt;b&gt;IFAlign&lt;/b&gt; earn it? 象 &amp; Größe" in words
    assert "&lt;b&gt;crab &amp; co&lt;/b&gt;" in words
    assert "alert(1)" in words
    assert "<b>" not in words
    assert "<script" not in words


def test_data_cannot_end_the_script_it_stands_in(study: Path) -> None:
    """Seven figures and report.js are eight scripts, whatever the data say."""
    page = report.build(study).read_text(encoding="utf-8")
    after = page[page.index("<body>") :]
    assert after.count("</script>") == 8


def test_same_rows_give_the_same_file(study: Path) -> None:
    first = report.build(study).read_bytes()
    assert report.build(study).read_bytes() == first


def test_headline_names_what_it_compares(study: Path) -> None:
    found = findings(results.read_arms(study), False)
    lead, choice, modules = sentences(found)
    assert f"The best student is arm {found.best['arm']}" in lead  # type: ignore[index]
    assert "above the student zero-shot (71.9" in lead
    assert "below the tuned teacher (82.4" in lead
    assert "chosen among 16 full-budget arms by val_harmonic_mean" in choice
    assert "The search saw no test label." in choice
    assert "optimistic" in choice
    assert "not evidence for the modules: not decidable here" in modules


def test_headline_of_a_grid_pairs_seeds(tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path, fake_run.grid_arms(5), fake_run.study_tree(fake_run.GRID, "grid"))
    lines = sentences(findings(results.read_arms(folder), True))
    assert "partly the luckiest seed" in lines[1]
    assert len(lines) == 5
    assert lines[4].startswith("ComKD-CLIP minus PromptKD, paired by seed (n = 5): ")
    assert "(the smallest that n = 5 can reach is 0.0625): not decidable with 5 seeds." in lines[4]
    assert "Paired by seed: each method minus PromptKD" in body(report.build(folder))


def test_headline_of_a_grid_says_what_is_supported_and_what_takes_more_seeds(tmp_path: Path) -> None:
    """IFAlign is worth 1 in each of 7 seeds; EduAttention -2 to 4, mostly noise."""
    noise = pl.when(arms_room.EDU_ATTENTION).then(pl.col("seed") - 3).otherwise(0)
    folder = fake_run.write(tmp_path, fake_run.grid_arms(7), fake_run.study_tree(fake_run.GRID, "grid"))
    arms = results.read_arms(folder).with_columns(test_harmonic_mean=80.0 + noise + pl.col(arms_room.IFALIGN))
    found = findings(arms, True)
    lines = sentences(found)
    assert lines[2].endswith(
        "(the smallest that n = 7 can reach is 0.0156): that it scores above is supported."
    )
    more = found.paired[1].found.further_seeds
    expected = f": not decidable. About {more} more seeds would decide it, were the effect seen the true one."
    assert lines[3].endswith(expected)
    assert (more or 0) + 7 == seeds_needed(mean(range(-2, 5)) / stdev(range(-2, 5)), 3)


def test_best_arm_that_is_promptkd_is_called_so(tmp_path: Path) -> None:
    off = {"student.ifalign": False, "student.edu_attention": False}
    folder = fake_run.write(tmp_path, [fake_run.arm(0, off)])
    lines = sentences(findings(results.read_arms(folder)))
    assert "the only full-budget arm" in lines[1]
    assert "it is PromptKD" in lines[2]


def test_best_arm_without_prompts_is_no_gain_of_the_modules(tmp_path: Path) -> None:
    off = {"student.ifalign": False, "student.edu_attention": False}
    lengths = [fake_run.arm(n, off | {"student.prompt_length": length}) for n, length in ((0, 4), (1, 0))]
    arms = results.read_arms(fake_run.write(tmp_path, lengths)).with_columns(
        objective=10.0 * pl.col("number")
    )
    lines = sentences(findings(arms))
    assert lines[2].startswith("With both modules off (PromptKD), the best of 1 arm by val_harmonic_mean")
    assert lines[2].endswith("the best arm has no module either: it is projector only.")


def test_study_without_promptkd_says_nothing_about_modules(tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path, [fake_run.arm(0, {"student.ifalign": True})])
    assert "No full-budget arm has both modules off" in sentences(findings(results.read_arms(folder)))[2]


@pytest.mark.parametrize(("status", "word"), [("failed", "4 arms failed"), ("pruned", "4 arms left early")])
def test_no_full_budget_arm_is_said_and_reported(tmp_path: Path, status: str, word: str) -> None:
    arms = [fake_run.arm(n, fake_run.drawn(n), status) for n in range(4)]
    folder = fake_run.write(tmp_path, arms, fake_run.study_tree(fake_run.SPACE), fake_run.provenance())
    words = body(report.build(folder))
    assert "No arm finished its full budget" in words
    assert word in words
    assert ("Failed arms" in words) == (status == "failed")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("wall_seconds", "x"),
        ("wall_seconds", float("nan")),
        ("arms_asked", "x"),
        ("peak_memory_bytes", [1]),
        ("stages", {"bank": "x"}),
        ("data", [1]),
        ("notes", 1),
    ],
)
def test_a_fact_that_cannot_be_is_left_out_and_told(study: Path, key: str, value: Any) -> None:
    (study / "provenance.json").write_text(json.dumps(fake_run.provenance(**{key: value})))
    assert f"provenance.json: {key} cannot be" in body(report.build(study))
    assert key not in run.read(study).provenance


@pytest.mark.parametrize("name", ["study.yaml", "provenance.json"])
def test_a_folder_in_the_place_of_a_file_is_told(study: Path, name: str) -> None:
    (study / name).unlink()
    (study / name).mkdir()
    (trouble,) = run.read(study).troubles
    assert trouble == f"{name} cannot be read: Is a directory."
    assert trouble in body(report.build(study))


def test_report_without_study_provenance_and_epochs(tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path / "bare", fake_run.searched_arms())
    shutil.rmtree(folder / "results" / "epochs")
    words = body(report.build(folder))
    assert "<h1>bare</h1>" in words
    assert "study.yaml is missing" in words
    assert "provenance.json is missing" in words
    assert "No epoch was recorded" in words


def test_broken_side_files_are_named_not_fatal(study: Path) -> None:
    (study / "study.yaml").write_text("study: [", encoding="utf-8")
    (study / "provenance.json").write_text("{", encoding="utf-8")
    words = body(report.build(study))
    assert "study.yaml does not fit this version" in words
    assert "provenance.json is no valid JSON" in words


def test_no_arms_is_the_readers_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `comkd-ray tune` first"):
        report.build(tmp_path)


def test_null_scores_are_dashes(tmp_path: Path) -> None:
    row, epochs = fake_run.arm(0, {"student.ifalign": True})
    nothing = {key: None for key in row if "test_" in key}
    folder = fake_run.write(tmp_path, [(row | nothing, epochs)])
    words = body(report.build(folder))
    assert "test harmonic mean \N{EN DASH}, base \N{EN DASH}" in words
    assert re.search(r"\b(nan|None)\b", re.sub(r"<[^>]*>", " ", words)) is None


def test_notices_and_remarks(study: Path) -> None:
    words = body(report.build(study))
    assert "demo weights (ImageNet + MiniLM joint space), not CLIP" in words
    assert "24 were asked for: the study is not finished." in words
    assert "transductive" in words
    facts = json.loads((study / "provenance.json").read_text()) | {"demo_weights": False}
    (study / "provenance.json").write_text(json.dumps(facts))
    assert "demo weights" in body(report.build(study))  # its study file says so, too
    path = study / "study.yaml"
    path.write_text(path.read_text().replace("assets:mini_teacher", "ViT-L-14"))
    assert "demo weights" not in body(report.build(study))


def test_home_is_not_told(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    command = "comkd-ray tune /home/somebody/a.yaml"
    facts = json.dumps(fake_run.provenance(command=command))
    (study / "provenance.json").write_text(facts)
    words = body(report.build(study))
    assert "somebody" not in words
    assert "comkd-ray tune ~/a.yaml" in words


def test_markup_escapes_all_but_markup() -> None:
    assert text("<&>") == "&lt;&amp;&gt;"
    assert tag("a", "<", Html("<br>"), href='"x"') == '<a href="&quot;x&quot;">&lt;<br></a>'
    assert join(["<", Html("<i>")], "") == "&lt;<i>"
    assert '<td class="word">&lt;x&gt;</td>' in table(["h"], [["<x>", 1]])


# Protocols --------------------------------------------------------------------------------------

WARNING = "chosen on the test set, as PromptKD does: not an estimate of new images"


def eight(folder: Path, kind: tuple[str, str], **sections: Any) -> Path:
    """Projector only and the 2x2 over three seeds under a protocol and a selection."""
    tree = fake_run.rows_tree(kind, **sections)
    return fake_run.write(folder, fake_run.rows_arms(tree), tree, fake_run.provenance(demo_weights=False))


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_every_protocol_has_a_report_in_its_own_scores(tmp_path: Path, kind: tuple[str, str]) -> None:
    words = body(report.build(eight(tmp_path, kind)))
    scores = run.read(tmp_path).scores
    assert f"Best arms by {scores.objective}" in words
    assert re.search(rf"The best student is arm \w+ \(number \d+\), [^:]*: {scores.name} ", words)
    other = "harmonic" if scores.headline == "test_accuracy" else "test accuracy"
    assert other not in re.sub(r"<details>.*?</details>", "", words, flags=re.DOTALL)
    assert re.search(r"\b(nan|None)\b", re.sub(r"<(figcaption)>.*?</\1>|<[^>]*>", " ", words)) is None


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_head_says_who_learned_from_what(tmp_path: Path, kind: tuple[str, str]) -> None:
    words = body(report.build(eight(tmp_path, kind)))
    box = words[words.index("Who learned from what") : words.index("The best arm and")]
    for what, from_what in run.read(tmp_path).explained():
        assert f"{what}</td>" in box
        assert f">{text(from_what)}</td>" in box
    assert "240 test images" in box
    assert "48 labelled images" in box


def test_counts_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    eight(tmp_path, ("all_classes", "strict"))
    facts = fake_run.provenance(data={"test": 240})
    (tmp_path / "provenance.json").write_text(json.dumps(facts))
    explained = dict(run.read(tmp_path).explained())
    assert explained["teacher learns from"] == "labelled images of all classes"
    assert explained["tested on"] == "240 test images, all classes"


@pytest.mark.parametrize("kind", fake_run.KINDS)
def test_scores_chosen_on_test_say_so_wherever_they_stand(tmp_path: Path, kind: tuple[str, str]) -> None:
    """In the notice, in the sentence, on the tile, above each figure of scores, in each table's title."""
    words = body(report.build(eight(tmp_path, kind)))
    if kind[1] == "strict":
        assert "on the test set" not in re.sub(r'<p class="caution">.*?</p>', "", words)
        assert "The search saw no test label." in words
        return
    assert f'<p class="notice">Scores of arms on this page are {WARNING}' in words
    assert "no estimate of new images" in words[: words.index('<dl class="tiles">')]
    assert "of the best arm, chosen on the test set" in words
    assert words.count(f'<p class="warned">{WARNING}') == 5  # all but cost; a grid has no importance
    titles = re.findall(r"<h3[^>]*>(.*?)</h3>", words)
    silent = [title for title in titles if WARNING not in title]
    assert silent == [
        "Who learned from what, what chose, what was tested",
        "What was spared",
        "What it took, by arm, variant and seed",
    ]
    assert ("transductive: trained on the test images" in words) == (kind[0] == "domain_generalization")
    assert "Test labels took no part" not in words
    assert "The search saw no test label" not in words


def test_published_numbers_stand_beside_ours_where_they_may(tmp_path: Path) -> None:
    data = {"dataset": "imagenet_v2", "root": "/d"}
    folder = eight(tmp_path, ("domain_generalization", "promptkd"), data=data)
    facts = fake_run.provenance(demo_weights=False, data={"test": 10_000})
    (folder / "provenance.json").write_text(json.dumps(facts))
    words = body(report.build(folder))
    assert "Published and ours, test (%)" in words
    assert ">69.77</td>" in words
    (folder / "provenance.json").write_text(json.dumps(fake_run.provenance()))
    words = body(report.build(folder))
    assert "Published and ours" not in words
    assert "What differs: imagenet_v2 with 240 test images (published: 10,000)." in words


def test_projector_only_is_not_mixed_into_promptkd(tmp_path: Path) -> None:
    words = body(report.build(eight(tmp_path, ("base_to_novel", "strict"))))
    modules = words[words.index('id="modules"') : words.index('id="curves"')]
    table, paired = modules.split("Paired by seed")
    assert re.findall(r'<td class="word">(.*?)</td><td class="number">(\d)</td>', table) == [
        ("PromptKD", "3"),
        ("PromptKD + IFAlign", "3"),
        ("PromptKD + EduAttention", "3"),
        ("ComKD-CLIP", "3"),
    ]
    assert '<td class="word">projector only</td><td class="number">3</td>' in paired


NARROW, WIDE = 380, 1400

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in a folder whose name a browser has to quote."""
    folder = tmp_path_factory.mktemp("a study & more") / "run"
    tree = fake_run.study_tree(fake_run.SPACE)
    return report.build(fake_run.write(folder, fake_run.searched_arms(), tree, fake_run.provenance()))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Headless Chromium that logs every request; skipped where there is none."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def opened(chrome: Chrome, path: Path, width: int, scheme: str) -> dict[str, Any]:
    """What the page says of itself once all figures are drawn."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get(path.as_uri())
    chrome.set_script_timeout(30)
    chrome.execute_async_script(
        "const [done] = arguments, root = document.documentElement;"
        "(function wait() { root.dataset.plots ? done() : setTimeout(wait, 50); })()"
    )
    found = chrome.execute_script(
        "const root = document.documentElement;"
        "return {over: root.scrollWidth - root.clientWidth,"
        " plots: document.querySelectorAll('.plot').length,"
        " drawn: [...document.querySelectorAll('.plot')].filter((plot) =>"
        "   plot.querySelector('.main-svg .trace path')).length,"
        " ink: getComputedStyle(document.querySelector('.xtick text')).fill}"
    )
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("kind", [("base_to_novel", "strict"), ("domain_generalization", "promptkd")])
def test_a_browser_shows_each_kind_of_scores(tmp_path: Path, browser: Chrome, kind: tuple[str, str]) -> None:
    path = report.build(eight(tmp_path, kind, data={"dataset": "imagenet_v2", "root": "/d"}))
    browser.get_log("browser")
    found = opened(browser, path, NARROW, "dark")
    assert found["over"] <= 0
    assert found["drawn"] == found["plots"] == 6  # a grid has no importance
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it_offline(built: Path, browser: Chrome, width: int, scheme: str) -> None:
    """No console message, no request, no sideways scroll, all figures in the scheme's ink."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    found = opened(browser, built, width, scheme)
    assert found["over"] <= 0
    assert found["drawn"] == found["plots"] == 7
    assert found["ink"] == {"light": "rgb(27, 29, 33)", "dark": "rgb(231, 233, 236)"}[scheme]
    assert browser.get_log("browser") == []
    messages = [json.loads(e["message"]) for e in browser.get_log("performance")]
    events = [message["message"] for message in messages]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = {each["request"]["url"] for each in sent if each["documentURL"] == built.as_uri()}
    assert urls == {built.as_uri()}


def test_a_browser_shows_all_columns_of_the_best_arms_in_a_window_of_1280(browser: Chrome) -> None:
    """Of the quickstart's sample, which searches eight keys."""
    page = Path(__file__).parent.parent / "reports" / "quickstart" / "report.html"
    opened(browser, page, 1280, "light")
    hidden = "return [...document.querySelectorAll('.dense')].map((box) => box.scrollWidth - box.clientWidth)"
    found = browser.execute_script(hidden)
    assert found
    assert max(found) <= 0


def test_a_browser_redraws_when_the_scheme_changes(built: Path, browser: Chrome) -> None:
    opened(browser, built, WIDE, "light")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    ink = "return getComputedStyle(document.querySelector('.xtick text')).fill"
    for _ in range(100):
        if browser.execute_script(ink) == "rgb(231, 233, 236)":
            return
    pytest.fail("the figures kept the ink of the light scheme")


def test_a_browser_shows_a_study_without_results(tmp_path: Path, browser: Chrome) -> None:
    arms = [fake_run.arm(n, fake_run.drawn(n), "pruned") for n in range(3)]
    path = report.build(fake_run.write(tmp_path, arms))
    found = opened(browser, path, NARROW, "light")
    assert found["drawn"] == found["plots"] == 2
    assert found["over"] <= 0


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_a_browser_draws_several_runs(tmp_path: Path, browser: Chrome, width: int) -> None:
    folders = [
        eight(tmp_path / name, fake_run.KINDS[0], data={"dataset": name, "root": "/d"})
        for name in ("dtd", "eurosat", "ucf101")
    ]
    for folder in folders:
        (folder / "provenance.json").unlink()  # the hash of made-up data is the same in all
    browser.get_log("browser")
    found = opened(browser, joint_report.build(folders, tmp_path / "joint.html"), width, "dark")
    assert found["over"] <= 0
    assert found["drawn"] == found["plots"] == 1
    assert browser.get_log("browser") == []


def test_epochs_of_a_foreign_table_are_no_trouble(study: Path) -> None:
    """Epochs of arms that are not in `arms` are left out, not drawn."""
    part = study / "results" / "epochs" / "part-0.parquet"
    rows = pl.read_parquet(part)
    rows.with_columns(arm=pl.lit("000000000000")).write_parquet(part)
    assert "No epoch was recorded" in body(report.build(study))


def test_a_study_with_two_objectives_has_its_front(tmp_path: Path) -> None:
    tree = fake_run.study_tree(fake_run.SPACE)
    tree["search"]["objectives"] = ["objective", "trainable_parameters"]
    folder = fake_run.write(tmp_path, fake_run.searched_arms(), tree, fake_run.provenance())
    page = body(report.build(folder))
    assert "<h2>Front</h2>" in page
    assert "what the search steered by: objective and trainable_parameters" in page
    assert page.count('class="plot"') == 8


def test_arms_of_a_fork_that_were_copied_cost_it_nothing(tmp_path: Path) -> None:
    rows = fake_run.searched_arms(6)
    for row, _ in rows:
        row["seconds"] = 30.0
    for row, _ in rows[:4]:
        row["from"] = "older"
    facts = fake_run.provenance(stages={"search": 60.0}, fork={"from": "older", "copied": 4, "told": 1})
    folder = fake_run.write(tmp_path, rows, fake_run.study_tree(fake_run.SPACE), facts)
    page = body(report.build(folder))
    assert "for 2 arms: 120 arms an hour. Their own times add up to 1\u00a0min\u00a000\u00a0s." in page
    assert "from older · copied 4 · told 1" in page

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from report_sample import republish, target_of, write_sample_run
from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.certificate import build_certificate
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.recipe import ReportKeys
from tunewright.report import comparison, head, numbers, rows, stage
from tunewright.report.page import SECTIONS

VOID = {"meta", "input", "wbr", "br", "path", "rect", "circle", "line"}


class Outline(HTMLParser):
    """Checks that every element is closed, and collects attributes, text and the ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def attribute(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


def report(run: RunDirectory, accept: tuple[str, ...] = ()) -> tuple[str, dict[str, Evidence], dict[str, Any]]:
    with run.staging("report") as out:
        result = stage.run(ReportKeys(name="triage", accept=list(accept)), run, out, Events())
        html = (out / "report.html").read_text(encoding="utf-8")
        return html, {item.name: item for item in result.evidence}, read_json(out / "certificate.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(write_sample_run(tmp_path_factory.mktemp("finished") / "run"))[0]


def plain(html: str) -> str:
    return " ".join("".join(Outline(html).text).split())


def test_stage_reads_nothing_from_outside_the_run() -> None:
    assert stage.inputs(ReportKeys()) == {}


def test_report_of_a_finished_run_passes_its_own_checks(tmp_path: Path) -> None:
    html, evidence, certificate = report(write_sample_run(tmp_path / "run"))
    assert {item.verdict for item in evidence.values()} == {"pass"}
    assert evidence["stages_finished"].value == 8
    assert certificate["certificate_sha256"] in html


def test_report_shows_every_section_in_order(finished: str) -> None:
    titles = re.findall(r'<h2 id="\w+-title"><span class="number">(\d+)</span>([^<]+)</h2>', finished)
    assert titles == [(str(number), section.title) for number, section in enumerate(SECTIONS, 1)]
    assert "has not finished" not in finished


def test_report_is_well_formed_and_its_references_lead_somewhere(finished: str) -> None:
    page = Outline(finished)
    ids = page.attribute("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.attribute("href")} <= set(ids)
    assert {one for labels in page.attribute("aria-labelledby") for one in labels.split()} <= set(ids)


def test_report_has_landmarks_and_every_table_a_caption(finished: str) -> None:
    tags = [tag for tag, _ in Outline(finished).elements]
    assert [tags.count(landmark) for landmark in ("header", "nav", "main", "footer", "h1")] == [1, 1, 1, 1, 1]
    assert tags.count("table") == tags.count("caption") > 10


def test_report_loads_nothing(finished: str) -> None:
    page = Outline(finished)
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert page.attribute("src") == []
    assert all(link.startswith("#") for link in page.attribute("href"))
    assert "url(" not in finished
    assert "@import" not in finished


def test_policy_admits_exactly_the_style_and_the_script_in_the_page(finished: str) -> None:
    def digest(tag: str) -> str:
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", finished, re.DOTALL)
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    (policy,) = [value for value in Outline(finished).attribute("content") if "default-src" in value]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest('style')}'; script-src 'sha256-{digest('script')}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_report_needs_no_style_attribute_and_no_event_attribute(finished: str) -> None:
    names = {name for _, attributes in Outline(finished).elements for name in attributes}
    assert "style" not in names
    assert not [name for name in names if name.startswith("on")]


def test_text_of_rows_is_escaped_everywhere(finished: str) -> None:
    assert finished.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in finished
    assert "<script>alert(1)</script>" in "".join(Outline(finished).text)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    hostile = Evidence("<img src=x>", "</style><b>", "= '\"&", "warn", "<svg onload=1>")
    republish(run, "merge", evidence=[hostile.as_json()])
    html, _, _ = report(run)
    assert "<img" not in html
    assert "<svg onload" not in html
    assert "<b>" not in html
    assert "&lt;svg onload=1&gt;" in html


def test_run_without_a_name_is_called_like_its_directory(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "from_directory")
    with run.staging("report") as out:
        stage.run(ReportKeys(), run, out, Events())
        assert read_json(out / "certificate.json")["name"] == "from_directory"


@pytest.mark.parametrize(
    ("without", "failing", "accept", "sentence"),
    [
        (
            (),
            (),
            (),
            "39 of 40 checks passed, with 1 warning (rarest_intent_share): what you serve is what you trained.",
        ),
        ((), ("loss_is_finite",), (), "1 of 40 checks failed: loss_is_finite."),
        (
            (),
            ("loss_is_finite",),
            ("loss_is_finite",),
            "38 of 40 checks passed; loss_is_finite failed and was accepted.",
        ),
        (("verify", "evaluate"), (), (), "Verify and evaluate have not finished."),
        (("evaluate",), ("tensors",), (), "1 of 37 checks failed: tensors. Evaluate has not finished."),
    ],
)
def test_verdict_is_one_plain_sentence(
    tmp_path: Path, without: tuple[str, ...], failing: tuple[str, ...], accept: tuple[str, ...], sentence: str
) -> None:
    run = write_sample_run(tmp_path / "run", without, failing)
    assert head.verdict_sentence(build_certificate(run, "triage", accept)) == sentence
    assert sentence in plain(report(run, accept)[0])


def test_verdict_says_that_every_check_passed(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    republish(run, "data", evidence=[Evidence("ledger_balances", 322, "= 322", "pass").as_json()])
    sentence = head.verdict_sentence(build_certificate(run, "triage"))
    assert sentence == "Every one of 34 checks passed: what you serve is what you trained."


@pytest.mark.parametrize(
    ("without", "failing", "accept", "badge"),
    [
        ((), (), (), ("pass", "passed")),
        ((), ("tensors",), (), ("fail", "failed")),
        ((), ("tensors",), ("tensors",), ("accepted", "passed, with failures accepted")),
        (("evaluate",), (), (), ("unfinished", "not finished")),
        (("evaluate",), ("tensors",), (), ("fail", "failed")),
    ],
)
def test_badge_tells_failed_from_unfinished_and_accepted(
    tmp_path: Path, without: tuple[str, ...], failing: tuple[str, ...], accept: tuple[str, ...], badge: tuple[str, str]
) -> None:
    run = write_sample_run(tmp_path / "run", without, failing)
    assert head.verdict_word(build_certificate(run, "triage", accept)) == badge


def test_head_shows_the_figures_that_one_asks_for_first(finished: str) -> None:
    figures = plain(finished)[:900].replace(numbers.NARROW_SPACE, " ")
    for figure in ("smollm2-135m-instruct", "270", "5 min 12 s", "30 steps", "12.5 % → 66.7 %", "model-q8_0.gguf"):
        assert figure in figures


@pytest.mark.parametrize("count", range(8))
def test_report_on_an_unfinished_run_says_which_stages_are_missing(tmp_path: Path, count: int) -> None:
    stages = ("data", "render", "plan", "train", "merge", "export", "verify", "evaluate")
    html, evidence, certificate = report(write_sample_run(tmp_path / "run", without=stages[count:]))
    assert certificate["verdict"] == "fail"
    assert evidence["stages_finished"].verdict == "warn"
    assert evidence["report_sections_unreadable"].verdict == "pass"
    absent = {section.id for section in SECTIONS if set(section.stages) & set(stages[count:])}
    shown = re.findall(r'<section id="(\w+)"[^>]*>\s*<h2.*?</h2>\s*<p class="absent">', html)
    assert set(shown) == absent
    assert f"The stage {stages[count]} has not finished." in html


def test_artifact_that_changed_fails_a_gate_and_the_certificate(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    (run / "merged/model.safetensors").write_text("the merged Weights", encoding="utf-8")
    html, evidence, certificate = report(run)
    assert evidence["artifacts_unchanged"].verdict == "fail"
    assert evidence["artifacts_unchanged"].detail.startswith("merged/model.safetensors has SHA-256 ")
    assert certificate["verdict"] == "fail"
    assert "Files changed after their stage wrote them: merged/model.safetensors has SHA-256" in plain(html)


@pytest.mark.parametrize("content", ['{"rows": 48}', "{", "[]", '{"rows": 1, "kind": "json", "metrics": 3}'])
def test_section_that_cannot_be_read_fails_a_gate_and_leaves_the_others(tmp_path: Path, content: str) -> None:
    run = write_sample_run(tmp_path / "run")
    (run / "evaluate/results.json").write_text(content, encoding="utf-8")
    html, evidence, _ = report(run)
    assert evidence["report_sections_unreadable"].value == 1
    assert evidence["report_sections_unreadable"].detail.startswith("Base against tuned: ")
    assert html.count('class="absent"') == 1
    assert "likeliest tokens at each step" in html


def test_ledger_is_shown_as_a_sum_that_comes_out(finished: str) -> None:
    fates = re.findall(r"(rows in|kept|repaired|truncated|rejected)</dt><dd>(\d+)</dd>", finished)
    assert fates == [("rows in", "322"), ("kept", "297"), ("repaired", "13"), ("truncated", "8"), ("rejected", "4")]
    assert "does not come out" not in finished


def test_ledger_that_does_not_balance_says_so(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    ledger = run / "tokens/ledger.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]), encoding="utf-8")
    assert "but the sum below does not come out" in report(run)[0]


def test_repairs_and_rejections_are_counted_by_reason_with_first_examples(finished: str) -> None:
    text = plain(finished)
    assert "role `human` became `user`train.jsonl:4, messages[0]" in text
    assert "empty targettrain.jsonl:18, messages[2].content: the assistant says nothing" in text
    assert "no assistant turntrain.jsonl:202: nothing to learn1" in text


def test_mask_marks_exactly_the_learned_text(finished: str) -> None:
    masked = finished.split('class="masked"')[1:]
    learned = [re.sub("<[^>]+>", "", "".join(re.findall("<mark>(.*?)</mark>", row, re.DOTALL))) for row in masked]
    assert [unescape(text) for text in learned] == [f"{target_of(number)}<|im_end|>" for number in (0, 5, 2)]


def test_long_text_that_is_not_learned_is_shortened_and_says_by_how_much() -> None:
    segment = {"text": "x" * 1000, "supervised": False}
    (piece,) = rows._segment(segment, None)["pieces"]
    assert piece["text"].count("x") == 525
    assert "475 characters not shown" in piece["text"]
    (learned,) = rows._segment({**segment, "supervised": True}, None)["pieces"]
    assert learned["text"] == "x" * 1000


def test_audit_check_shows_the_rows_it_found(finished: str) -> None:
    assert '<summary>1 example</summary><span class="detail example">train.jsonl:88: spare_part</span>' in finished


def test_special_tokens_are_found_in_lists_and_in_mappings() -> None:
    assert rows.special_tokens(["<s>", "</s>", ""]) == ["</s>", "<s>"]
    assert rows.special_tokens({"bos": "<s>", "more": ["<x>", "<s>"], "pad": None}) == ["<s>", "<x>"]
    assert rows.special_tokens(None) == []


def test_parity_is_judged_by_the_limits_that_were_recorded(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    verified = read_json(run / "verify.json")
    verified["engines"][3]["mean_kl"] = 0.02
    verified["engines"][2]["prompt_ids_equal"] = 0.875
    write_json(run / "verify.json", verified)
    html, _, _ = report(run)
    table = html.split('<table class="parity">')[1].split("</table>")[0]
    assert re.findall(r'<tr class="(\w+)">', table) == ["pass", "pass", "fail", "fail"]
    assert table.count('class="n broken"') == 2


def test_parity_says_why_no_engine_was_asked(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    write_json(run / "verify.json", {"engines": [], "canaries": []})
    assert "No engine was asked: one of the artifacts is not what it claims to be." in plain(report(run)[0])


def test_evaluation_without_rows_says_so(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    empty: dict[str, Any] = {"rows": 0, "kind": "text", "metrics": [], "headline": "", "answers": []}
    write_json(run / "evaluate/results.json", empty)
    html, evidence, _ = report(run)
    assert "Nothing was measured on held-out rows." in html
    assert evidence["report_sections_unreadable"].verdict == "pass"


def test_gain_over_the_base_stands_beside_the_figures(finished: str) -> None:
    row = plain(finished).replace(numbers.NARROW_SPACE, " ").split("intent, exact")[-1]
    assert row.strip().startswith("12.5 %1 to 2466.7 %55 to 7964.6 %53 to 77+54.242 to 66")


def test_canaries_with_another_text_are_pointed_out(finished: str) -> None:
    assert finished.count("answers differ") == 1
    (differing,) = re.findall(r'<span class="differs-text">≠ ([^<]+)</span>', finished)
    assert json.loads(unescape(differing))["summary"] == "A parcel is still in Leipzig."


def test_best_and_worst_rows_are_never_the_same() -> None:
    answers = [{"id": str(number), "score": {"base": 0.5, "merged": number / 10}} for number in range(5)]
    best, worst = comparison.best_and_worst(answers)
    assert ([one["id"] for one in best], [one["id"] for one in worst]) == (["4", "3", "2"], ["0", "1"])
    assert comparison.best_and_worst(answers[:1]) == (answers[:1], [])
    assert comparison.best_and_worst([]) == ([], [])


def test_the_larger_gain_over_the_base_comes_first_among_equals() -> None:
    answers = [{"id": "a", "score": {"base": 0.9, "merged": 1.0}}, {"id": "b", "score": {"base": 0.0, "merged": 1.0}}]
    assert comparison.best_and_worst(answers)[0][0]["id"] == "b"


def test_fields_of_json_answers_are_marked_where_they_differ() -> None:
    target = {"intent": "billing", "summary": "Charged twice.", "urgency": "high"}
    answer = {"intent": "refund", "summary": "Two charges.", "urgency": "high", "extra": 1}
    card = comparison._card(json.dumps(answer), answer, target, {"intent", "urgency"})
    assert [(field["name"], field["mark"]) for field in card["fields"]] == [
        ("intent", "differs"),
        ("summary", "reworded"),
        ("urgency", "same"),
        ("extra", "differs"),
    ]


def test_field_that_an_answer_lacks_is_marked_as_missing() -> None:
    card = comparison._card("{}", {}, {"intent": "billing"}, set())
    assert card["fields"] == [{"name": "intent", "text": "(missing)", "mark": "differs"}]


def test_answer_that_is_no_json_is_shown_as_text_and_marked() -> None:
    assert comparison._card("Sure!", None, {"intent": "billing"}, set()) == {
        "text": "Sure!",
        "fields": [],
        "broken": True,
    }
    assert comparison._card("Sure!", None, None, set())["broken"] is False


def test_gates_show_failing_evidence_first_and_by_word(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run", failing=("stop_tokens_in_modelfile", "near_duplicate_rows"))
    html, _, _ = report(run, accept=("near_duplicate_rows",))
    section = html.split('<section id="gates"')[1].split("</section>")[0]
    first = re.findall(r'<tr class="(\w+)">\s*<td><span class="badge \w+">.*?</span>([^<]+)</span>', section)
    assert first[:2] == [("accepted", "fail, accepted"), ("fail", "fail")]
    export = section.split("<h3>export</h3>")[1]
    assert re.findall(r'<tr class="(\w+)">', export)[:2] == ["fail", "pass"]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2 between two colours written as `#rrggbb`."""

    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: int) -> None:
    style = (files("tunewright.report") / "template" / "style.css").read_text(encoding="utf-8")
    block = style.split(":root {")[1 + scheme].split("}")[0]
    colours = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6});", block))
    assert len(colours) == 15
    for ground in ("paper", "panel", "learned", "wash"):
        assert contrast(colours["ink"], colours[ground]) >= 7
    for words in ("soft", "accent", "pass", "warn", "fail"):
        assert contrast(colours[words], colours["paper"]) >= 4.5
    for ground in ("panel", "wash"):
        assert contrast(colours["soft"], colours[ground]) >= 4.5
    assert contrast(colours["fail"], colours["wash"]) >= 4.5
    for drawn in ("base", "gguf", "thin", "accent"):
        assert contrast(colours[drawn], colours["paper"]) >= 3

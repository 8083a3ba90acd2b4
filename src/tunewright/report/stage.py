"""The report stage: `certificate.json` for machines, `report.html` for people, `README.md` for whoever gets the model.

In goes everything that the run holds so far, out come the three files, the model card once there is an export. It
always holds that the certificate lists the artifacts that stand in the run at this moment: one that changed after its
stage wrote it fails a gate here, and the certificate's verdict with it.
"""

import time
from pathlib import Path

from tunewright.artifacts import RunDirectory, StageResult, write_json, write_text
from tunewright.certificate import CERTIFICATE_NAME, CERTIFIED_STAGES, build_certificate, read_manifests
from tunewright.events import Events
from tunewright.evidence import Evidence, equal, fact
from tunewright.recipe import ReportKeys
from tunewright.report import numbers
from tunewright.report.card import CARD_NAME, card_text, place_in_run
from tunewright.report.contents import Contents
from tunewright.report.page import Page, render_page

REPORT_NAME = "report.html"


def inputs(config: ReportKeys) -> dict[str, str]:
    """Nothing from outside the run directory."""
    return {}


def run(config: ReportKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    """Write the certificate and the report.

    Raises:
        ArtifactError: a manifest is damaged.
    """
    manifests = read_manifests(run)
    changed = [text for manifest in manifests.values() for text in run.differences(manifest)]
    certificate = build_certificate(run, config.name or run.path.resolve().name, config.accept, changed)
    contents = Contents(run, certificate, manifests)
    page = render_page(contents, numbers.moment(time.time()))
    write_json(out / CERTIFICATE_NAME, certificate)
    if "export" in manifests:
        write_text(out / CARD_NAME, card_text(contents, place_in_run(contents)))
    write_text(out / REPORT_NAME, page.html)
    events.note(f"{REPORT_NAME} and {CERTIFICATE_NAME} are written: verdict {certificate['verdict']}")
    evidence = [
        check_stages(certificate["missing_stages"]),
        check_unchanged(changed),
        check_sections(page),
        fact("report_bytes", len(page.html.encode())),
    ]
    return StageResult(
        evidence,
        {"verdict": certificate["verdict"], "certificate_sha256": certificate["certificate_sha256"]},
    )


def check_stages(missing: list[str]) -> Evidence:
    """A report on a run that is still under way is no fault; its certificate says that stages are missing."""
    done = len(CERTIFIED_STAGES) - len(missing)
    detail = f"Not finished yet: {numbers.listed(missing)}." if missing else "Every stage has finished."
    return equal("stages_finished", done, len(CERTIFIED_STAGES), detail).softened()


def check_unchanged(changed: list[str]) -> Evidence:
    detail = "Every artifact still has the size and the SHA-256 that its stage wrote."
    if changed:
        detail = f"{'; '.join(changed)}. Run `tunewright run` again: it makes anew what was changed."
    return equal("artifacts_unchanged", len(changed), 0, detail)


def check_sections(page: Page) -> Evidence:
    detail = " ".join(page.unreadable) or "Every section of the report could be read from the run."
    return equal("report_sections_unreadable", len(page.unreadable), 0, detail)

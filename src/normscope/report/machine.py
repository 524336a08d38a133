"""A diagnosis for other programs: SARIF for code scanning, JUnit XML for test reports."""

from typing import Any
from xml.etree import ElementTree as ET

from normscope import __version__
from normscope.files import json_text, shown
from normscope.records import Diagnosis, Finding
from normscope.report import checks
from normscope.report.messages import Lang, say

LEVELS = {"error": "error", "warning": "warning", "info": "note"}
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(record: Diagnosis, lang: Lang) -> str:
    """SARIF 2.1.0: one rule per check, one result per finding, layers as logical locations."""
    codes = sorted({*record.codes, *record.passed, *(s.code for s in record.skipped)})
    rules = [
        {
            "id": code,
            "shortDescription": {"text": checks.title(code).read(lang)},
            "fullDescription": {"text": say(lang, f"doctor.{code}.explain")},
            "help": {"text": checks.advice(code).read(lang)},
        }
        for code in codes
    ]
    results = [
        _result(record, finding, codes.index(finding.code), lang) for finding in record.findings
    ]
    driver = {"name": "normscope", "version": __version__, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results}
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json_text(document, indent=1)


def _result(record: Diagnosis, finding: Finding, rule: int, lang: Lang) -> dict[str, Any]:
    where = shown(finding.layer or record.model)
    text = checks.evidence(finding).read(lang)
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{where}: {text}"},
        "locations": [{"logicalLocations": [{"fullyQualifiedName": where, "kind": "module"}]}],
        "properties": {"confidence": finding.confidence, "threshold": finding.threshold},
    }


def junit(record: Diagnosis, lang: Lang) -> str:
    """JUnit XML: one test case per check; warnings and errors fail, notes go to its output."""
    failing = {f.code for f in record.findings if f.severity != "info"}
    skipped = {s.code: s.reason for s in record.skipped}
    codes = sorted({*record.codes, *record.passed, *skipped})
    suite = ET.Element(
        "testsuite",
        name="normscope",
        tests=str(len(codes)),
        failures=str(len(failing)),
        errors="0",
        skipped=str(len(skipped)),
    )
    for code in codes:
        name = f"{code} {checks.title(code).read(lang)}"
        case = ET.SubElement(suite, "testcase", classname="normscope", name=name)
        if code in skipped:
            ET.SubElement(case, "skipped", message=say(lang, skipped[code]))
            continue
        found = [f for f in record.findings if f.code == code]
        lines = [
            f"{shown(f.layer or record.model)}: {checks.evidence(f).read(lang)}" for f in found
        ]
        if code in failing:
            failure = ET.SubElement(case, "failure", message=lines[0], type=found[0].severity)
            failure.text = "\n".join([*lines, checks.advice(code).read(lang)])
        elif lines:
            ET.SubElement(case, "system-out").text = "\n".join(lines)
    # XML knows no escape for control characters
    return shown(ET.tostring(suite, encoding="unicode", xml_declaration=True), keep="\n")

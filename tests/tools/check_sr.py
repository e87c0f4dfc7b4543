"""Asks two independent validators about a Structured Report: dicom3tools' dciodvfy and PixelMed's DicomSRValidator.

``python -m tests.tools.check_sr FILE...`` prints what they find and exits 1 when either reports an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIXELMED = "/usr/share/java/pixelmed.jar"
PEERS = ("dciodvfy", "java", PIXELMED)
_COMPLETE = "IOD validation complete"
_DEADLINE_S = 120
_JAVA = (
    "java",
    # One validation is one short life: little compilation and no collector threads make it three times as fast.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    # PixelMed's rules are larger than Java's XPath evaluator allows by default.
    "-Djdk.xml.xpathTotalOpLimit=0",
    "-Djdk.xml.xpathExprOpLimit=0",
    "-Djdk.xml.xpathExprGrpLimit=0",
    "-cp",
    PIXELMED,
    "com.pixelmed.validate.DicomSRValidator",
    "-checktemplateid",
    "-checkcontentitemorder",
)


def iod_errors(path: Path) -> list[str]:
    """What dciodvfy calls an error in the file."""
    return [line for line in _output("dciodvfy", str(path)) if line.startswith("Error")]


def template_errors(path: Path) -> list[str]:
    """What DicomSRValidator calls an error in the file, or that it did not come to the end."""
    lines = _output(*_JAVA, str(path))
    errors = [line for line in lines if line.startswith("Error") or "Exception" in line]
    return errors if errors or _COMPLETE in lines else [f"validation did not complete: {' / '.join(lines[-3:])}"]


def template_errors_of(paths: list[Path]) -> dict[Path, list[str]]:
    """`template_errors` for each file; a virtual machine each, as many at a time as there are cores."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(paths, pool.map(template_errors, paths), strict=True))


def _output(*command: str) -> list[str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_DEADLINE_S, check=False)
    return [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines()]


def main(arguments: list[str]) -> int:
    """Print every error found in the files; the exit status is 1 when there is one."""
    found = [f"{path}: {error}" for path in map(Path, arguments) for error in iod_errors(path) + template_errors(path)]
    print("\n".join(found) or f"no error in {len(arguments)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Write the tables of docs/vision.md from the row file.

python experiments/video/tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from namm.vision import to_markdown

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `benchmarks` is found there

from benchmarks.rows import read

PAGE = Path(__file__).parents[2] / "docs" / "vision.md"
MARK = "<!-- tables -->\n"


def main() -> None:
    rows = read("vision")
    r = rows[0]
    made_by = (
        f"`experiments/video/run.sh` at commit {', '.join(sorted({str(row['commit']) for row in rows}))}; "
        f"{r['hardware']}; torch {r['torch']}, transformers {r['transformers']}.\n"
    )
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(MARK.join([before, f"{to_markdown(rows, 'seconds')}\n{made_by}", after]))


if __name__ == "__main__":
    main()

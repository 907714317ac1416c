"""Write the tables of docs/vision.md from the row file.

python benchmarks/vision.py
"""

from __future__ import annotations

from pathlib import Path

from rows import read

from namm.vision.summary import to_markdown

PAGE = Path(__file__).parents[1] / "docs" / "vision.md"
MARK = "<!-- tables -->\n"


def main() -> None:
    rows = read("vision")
    r = rows[0]
    made_by = (
        f"`benchmarks/vision.sh` at commit {', '.join(sorted({str(row['commit']) for row in rows}))}; {r['hardware']}; "
        f"torch {r['torch']}, transformers {r['transformers']}.\n"
    )
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(MARK.join([before, f"{to_markdown(rows)}\n{made_by}", after]))


if __name__ == "__main__":
    main()

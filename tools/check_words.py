"""Check for phrases that the project's style forbids; prints each with file and line, and exits with 1."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN = re.compile(
    r"""(?ix)
    \b(?:
        whoever | nobody | needless | in\ vain | without\ a\ word | as\ it\ were | goes\ before
      | hears?\ of | hearing\ of | heard\ of
      | tells?\ of | telling\ of | told\ of
      | say\ no | says\ no | said\ no(?:\ to)?
      | (?:stands?|stood)\ against
      | (?:takes?|took)\ leave
      | (?:comes?|came)\ of
      | looks?\ whether
      | mend(?:s|ed|ing)?
      | is\ none\ of | (?:is|are)\ no\ (?:options?|tables?|data\ IDs?)
      | what\ is\ (?:told|said|heard|done\ with)
      | what\ [^.,;:]{1,40}\ of\ it
      | many\ librar(?:y|ies)\ may\ speak
    )\b
    """
)
PERSONAL = re.compile(r"(?i)(?<![`\w.])\b(?:he|who)\b(?![`\w=(])")  # in prose: the actor has a name
OPENING = re.compile(r'^\s*r?"""(?:What|How|Of)\b')  # a docstring begins with a noun or a verb
RULES = (FORBIDDEN, PERSONAL, OPENING)

# Files that have to spell out the phrases.
EXEMPT = {"tools/check_words.py", "CONTRIBUTING.md"}


def main(names: list[str]) -> int:
    """Check files, by default all Python and Markdown files that git knows; return the exit status."""
    if not names:
        command = ["git", "ls-files", "*.py", "*.md"]
        names = subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    count = 0
    for name in names:
        path = Path(name) if Path(name).is_absolute() else ROOT / name
        if path.relative_to(ROOT).as_posix() in EXEMPT:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in itertools.chain.from_iterable(rule.finditer(line) for rule in RULES):
                print(f"{name}:{number}: {match[0]!r} in: {line.strip()[:100]}")
                count += 1
    if count:
        print(
            f"{count} forbidden phrases: name the actor, and use the field's word (CONTRIBUTING.md, Style)."
        )
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

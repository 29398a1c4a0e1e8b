"""Where the tests' material lies."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "tiny_gemma3n"
GEMMA_4_EXAMPLE = REPOSITORY / "examples" / "tiny_gemma4"
FIXTURES = REPOSITORY / "tests" / "fixtures"

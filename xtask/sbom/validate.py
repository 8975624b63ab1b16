"""Judges CycloneDX documents by their schema. Arguments: files of CycloneDX 1.5 as JSON."""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

validator = JsonStrictValidator(SchemaVersion.V1_5)
failed = False
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        error = validator.validate_str(file.read())
    if error is not None:
        failed = True
        print(f"{path}: {error}", file=sys.stderr)
sys.exit(failed)

"""Parses PowerShell by its grammar for tree-sitter, and exits with 1 where a file has a syntax error: `powershell.py FILE…`."""

import sys
from pathlib import Path

import tree_sitter
import tree_sitter_powershell

parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
wrong = [file for file in sys.argv[1:] if parser.parse(Path(file).read_bytes()).root_node.has_error]
sys.exit(f"syntax errors: {', '.join(wrong)}" if wrong else 0)

"""Make `dvc plots show` and `dvc plots diff` work offline.

DVC's HTML template loads Vega from a CDN. This command writes a template that contains Vega, and sets it as
`plots.html_template` in DVC's local configuration.
"""

import subprocess
import sys
from pathlib import Path

import vl_convert

from headstart.console import run_cli
from scripts import argument_parser

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Headstart: plots</title>
{refresh_tag}
<script>(() => {VEGA})();</script>
<style>body { font-family: system-ui, sans-serif; margin: 2rem; } .vega-embed { margin-bottom: 2rem; }</style>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="path of the HTML template")
    file: Path = parser.parse_args(arguments).file
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    script = script.replace("</script", "<\\/script")
    file.write_text(PAGE.replace("VEGA", script), encoding="utf-8")
    subprocess.run(["dvc", "config", "--local", "plots.html_template", str(file.resolve())], check=True)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])

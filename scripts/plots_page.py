"""Make `dvc plots show` and `dvc plots diff` work without a network: DVC's page loads Vega from one, this one has it.

    python -m scripts.plots_page FILE

The page goes to FILE, which the local configuration of DVC then names.
"""

import subprocess
import sys
from pathlib import Path

import vl_convert

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


def main(file: str) -> None:
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    script = script.replace("</script", "<\\/script")
    Path(file).write_text(PAGE.replace("VEGA", script), encoding="utf-8")
    subprocess.run(["dvc", "config", "--local", "plots.html_template", str(Path(file).resolve())], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

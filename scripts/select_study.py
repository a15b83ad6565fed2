"""Select a study in params.yaml, with the configurations of its committed record if it has one.

Run `dvc repro` afterwards. `git checkout params.yaml dvc.lock` restores the earlier selection.
"""

import io
import sys
from pathlib import Path

from ruamel.yaml import YAML

from headstart import files, params
from headstart.console import UserError, run_cli
from scripts import argument_parser, record

NULL_TAG = "tag:yaml.org,2002:null"


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("study", help="name of a study in params.yaml")
    name = parser.parse_args(arguments).study
    studies = params.read().studies
    if name not in studies:
        raise UserError(f"unknown study. Choose one of {', '.join(studies)}. Got {name!r}.")
    yaml, path = YAML(), Path("params.yaml")
    yaml.preserve_quotes, yaml.width = True, 4_096
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar(NULL_TAG, "null"))
    document = yaml.load(path.read_text(encoding="utf-8"))
    document["study"] = name
    for key, empty in (("networks", {}), ("finetuned_networks", [])):  # they would be compared on this study
        if document[key]:
            document[key] = empty
    recorded = files.read_json(record.path(name))["configurations"] if record.path(name).is_file() else {}
    configurations = {
        key: {option: value for option, value in settings.items() if value is not None}
        for key, settings in recorded.items()
    }
    if configurations and configurations != params.read_yaml()["configurations"]:
        document["configurations"] = configurations
    params.validate(document, params.Params, params.SECTIONS, path)
    stream = io.StringIO()
    yaml.dump(document, stream)
    files.write_text(path, stream.getvalue())
    print(f"selected {name} with {len(document['configurations'])} configurations: run `dvc repro`")


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])

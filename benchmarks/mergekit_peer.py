"""mergekit as a peer: merges whole weights with mergekit's own functions, in a Python of its own.

    python benchmarks/mergekit_peer.py FOLDER SEED      (with a Python that has mergekit)

FOLDER holds base.safetensors, member0.safetensors, .. (the adapted weights, float32) and methods.json, a list of
{"id", "method", "parameters"}. Writes ID.safetensors, the merged weights minus the base's, and versions.json; a method that
refuses gets an ID.txt with its words instead.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path


def main() -> int:
    import torch
    from mergekit.merge_methods import merge_state_dicts
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    base = load_file(folder / "base.safetensors")
    members = {path.stem: load_file(path) for path in sorted(folder.glob("member*.safetensors"))}
    for wanted in json.loads((folder / "methods.json").read_text()):
        torch.manual_seed(seed)
        parameters = dict(wanted["parameters"])
        alone = parameters.pop("without_base", False)  # methods that average whole weights and know no base
        models = members if alone else {"base": base, **members}
        try:
            with torch.no_grad():
                merged = merge_state_dicts(
                    models, wanted["method"], parameters=parameters, base=None if alone else "base", dtype=torch.float32
                )
        except (ValueError, RuntimeError, TypeError) as e:
            (folder / f"{wanted['id']}.txt").write_text(f"{type(e).__name__}: {e}")
            continue
        change = {name: (merged[name].float() - base[name]).contiguous() for name in base}
        save_file(change, folder / f"{wanted['id']}.safetensors")
    (folder / "versions.json").write_text(json.dumps({"mergekit": version("mergekit"), "torch": version("torch")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

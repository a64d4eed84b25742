"""The licenses that the Hub knows (huggingface.co/docs/hub/repositories-licenses)."""

import difflib

from vit_jax.errors import ConfigError

LICENSES = frozenset("""
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc
    lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
""".split())


def hub_license(name: str) -> str:
  """The Hub's name of a license; case does not matter, and SPDX's GNU suffixes are dropped.

  Raises:
    ConfigError: the Hub does not know it; the text proposes what was meant.
  """
  wanted = name.strip().lower()
  if wanted in LICENSES:
    return wanted
  plain = wanted.removesuffix("-only").removesuffix("-or-later")
  if plain in LICENSES:
    return plain
  near = difflib.get_close_matches(wanted, sorted(LICENSES), n=3, cutoff=0.5)
  # "mpl", "apache": one of a family, without its version.
  near += [known for known in sorted(LICENSES) if wanted and known.startswith(wanted + "-")]
  hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
  raise ConfigError(
      f"--license={name}: the Hub knows no such license; {hint}All are listed at "
      "https://huggingface.co/docs/hub/repositories-licenses; for any other write --license=other"
  )

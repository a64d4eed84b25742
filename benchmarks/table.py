"""Results to a markdown table."""

# Heading, and how a result is shown under it; "" where it has no such figure.
_TRAIN = (
    ("model", lambda r: r["model"]),
    ("batch", lambda r: str(r["batch"])),
    ("computed in", lambda r: r["dtype"]),
    ("framework", lambda r: r["framework"]),
    ("images/s", lambda r: _figure(r["images_per_second"])),
    ("quartiles", lambda r: " – ".join(_figure(q) for q in r["quartiles"])),
    ("ours / theirs", lambda r: f"{r['ratio']:.2f}" if r.get("ratio") else ""),
    ("ms a step", lambda r: _figure(r["milliseconds"])),
    ("MFU", lambda r: f"{r['mfu']:.1%}" if r.get("mfu") else ""),
    ("peak memory, GB", lambda r: f"{r['peak_bytes'] / 1e9:.2f}" if r["peak_bytes"] else ""),
    ("start to first step, s", lambda r: f"{r['first_step_seconds']:.0f}"),
    ("other work on the CPUs", lambda r: _share(r["other_work"])),
)
_ATTENTION = (
    ("tokens", lambda r: str(r["tokens"])),
    ("images", lambda r: str(r["images"])),
    ("attention", lambda r: r["implementation"]),
    ("ms, forward + backward", lambda r: f"{r['milliseconds']:.3f}"),
    ("TFLOP/s", lambda r: f"{r['tflops_per_second']:.1f}"),
    ("temporary memory, GB", lambda r: f"{r['temporary_bytes'] / 1e9:.2f}"),
    ("deviation from float32", lambda r: f"{r['deviation']:.1e}"),
)


def markdown(results, *, heading: str, notes) -> str:
  """A section: heading, notes as a list, and a table of each benchmark that has results."""
  parts = [heading, "\n".join(f"- {note}" for note in notes)]
  for benchmark, columns in (("train_step", _TRAIN), ("attention", _ATTENTION)):
    chosen = [r for r in results if r["benchmark"] == benchmark]
    if chosen:
      parts.append(_table(chosen, columns))
  return "\n\n".join(parts)


def _table(results, columns) -> str:
  """Columns in which no result has a figure are left out."""
  cells = [[show(r) for r in results] for _, show in columns]
  kept = [(name, c) for (name, _), c in zip(columns, cells) if any(c)]
  rows = [[name for name, _ in kept], ["---"] * len(kept)]
  rows += [[c[i] for _, c in kept] for i in range(len(results))]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _share(value: float | None) -> str:
  return "" if value is None else f"{value:.0%}"


def _figure(value: float) -> str:
  return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"

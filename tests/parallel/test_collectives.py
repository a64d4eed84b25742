"""Collectives read off compiled programs: real ones of eight devices, and other backends' text."""

import functools
import itertools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_jax.parallel.collectives import Collective, collectives, summarize
from vit_jax.parallel.mesh import AXES, create_mesh
from vit_jax.parallel.topology import imagined_devices, parse

AXIS_SETS = [axes for n in (1, 2, 3) for axes in itertools.combinations(AXES, n)]


@functools.cache
def cube():
  return create_mesh(replica=2, fsdp=2, tensor=2)


def compiled(function, mesh, *shapes, in_specs, out_specs):
  """Collectives of a function that runs on every device of a mesh."""
  mapped = jax.shard_map(
      function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
  return collectives(jax.jit(mapped).lower(*arguments).compile().as_text(), mesh)


@pytest.mark.parametrize("axes", AXIS_SETS, ids="-".join)
def test_a_sum_over_axes(axes):
  """Replica groups, in whichever form the compiler writes them, are those axes."""
  found = compiled(
      lambda x: jax.lax.psum(x, axes), cube(), (8, 4), in_specs=P(), out_specs=P()
  )
  assert [(c.kind, c.dtype, c.bytes, c.count) for c in found] == [("all-reduce", "f32", 128, 1)]
  assert found[0].axes == axes and found[0].group == 2 ** len(axes) and found[0].slices == 1
  assert "psum" in found[0].op


@pytest.mark.parametrize("axes", AXIS_SETS[:3], ids="-".join)
def test_the_axes_of_a_mesh_of_another_order(axes):
  """Partitions are places in the mesh, not device ids."""
  devices = cube().devices.transpose(2, 0, 1)[::-1]
  mesh = jax.sharding.Mesh(devices, AXES, axis_types=cube().axis_types)
  found = compiled(lambda x: jax.lax.psum(x, axes), mesh, (4,), in_specs=P(), out_specs=P())
  assert [c.axes for c in found] == [axes]


def test_a_gather_in_a_loop_counts_as_often_as_the_loop_runs():
  def function(x):
    def body(carry, _):
      whole = jax.lax.all_gather(jnp.sin(carry), "fsdp", tiled=True)
      return whole[: carry.shape[0]] * 2, None

    return jax.lax.scan(body, x, None, length=5)[0]

  found = compiled(function, cube(), (8, 16), in_specs=P("fsdp"), out_specs=P("fsdp"))
  (one,) = found
  assert (one.kind, one.axes, one.count) == ("all-gather", ("fsdp",), 5)
  assert one.bytes == 8 * 16 * 4  # the whole array, gathered
  assert one.total_bytes == 5 * one.bytes


def test_loops_in_loops_multiply():
  def function(x):
    inner = lambda c, _: (jax.lax.psum(jnp.cos(c), "tensor"), None)
    outer = lambda c, _: (jax.lax.scan(inner, jnp.sin(c), None, length=4)[0], None)
    return jax.lax.scan(outer, x, None, length=3)[0]

  found = compiled(function, cube(), (8,), in_specs=P(), out_specs=P())
  assert [(c.kind, c.axes, c.count) for c in found] == [("all-reduce", ("tensor",), 12)]


def test_a_reduce_scatter_counts_what_it_takes():
  function = lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True)
  (one,) = compiled(function, cube(), (8, 4), in_specs=P(), out_specs=P("fsdp"))
  assert (one.kind, one.axes, one.bytes) == ("reduce-scatter", ("fsdp",), 8 * 4 * 4)


def test_an_all_to_all():
  function = lambda x: jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True)
  found = compiled(
      function, cube(), (8, 4), in_specs=P("tensor"), out_specs=P(None, "tensor")
  )
  assert {(c.kind, c.axes) for c in found} == {("all-to-all", ("tensor",))}
  assert sum(c.total_bytes for c in found) == 4 * 4 * 4


def test_a_permutation():
  function = lambda x: jax.lax.ppermute(x, "replica", [(0, 1), (1, 0)])
  (one,) = compiled(function, cube(), (4,), in_specs=P(), out_specs=P())
  assert (one.kind, one.axes, one.bytes, one.group) == ("collective-permute", ("replica",), 16, 2)


def test_branches_are_followed():
  def function(x):
    return jax.lax.cond(
        x[0] > 0, lambda x: jax.lax.psum(x, "fsdp"), lambda x: jax.lax.pmax(x, "tensor"), x
    )

  found = compiled(function, cube(), (4,), in_specs=P(), out_specs=P())
  assert sorted(c.axes for c in found) == [("fsdp",), ("tensor",)]


def test_gradients_of_sharded_parameters():
  """What the compiler itself puts in: a split kernel is gathered, its gradient summed."""
  mesh = create_mesh(replica=2, fsdp=4, tensor=1)
  put = lambda *spec: NamedSharding(mesh, P(*spec))
  loss = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)
  step = jax.jit(
      jax.grad(loss), in_shardings=(put("fsdp"), put(("replica", "fsdp"))),
      out_shardings=put("fsdp"),
  )
  kernel, images = (64, 32), (4096, 64)
  shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (kernel, images)]
  found = collectives(step.lower(*shapes).compile().as_text(), mesh)
  gathered = [c for c in found if c.kind == "all-gather"]
  assert [(c.axes, c.bytes) for c in gathered] == [(("fsdp",), 64 * 32 * 4)]
  summed = [c for c in found if c.kind in ("all-reduce", "reduce-scatter")]
  assert set().union(*(c.axes for c in summed)) == {"replica", "fsdp"}
  assert max(c.bytes for c in summed) == 64 * 32 * 4


def test_no_collective_on_one_device():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
  assert compiled(lambda x: jax.lax.psum(x, AXES), mesh, (4,), in_specs=P(), out_specs=P()) == []


def program(*lines, more=""):
  body = "\n".join(f"  {line}" for line in lines)
  return (
      f"HloModule jit_f, is_scheduled=true\n\n{textwrap.dedent(more)}\n"
      f"ENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"
  )


SUM = "use_global_device_ids=true, to_apply=%add"
OVER_ALL = f"replica_groups=[1,8]<=[8], {SUM}"
OVER_TENSOR = f"replica_groups=[4,2]<=[8], {SUM}"


def read(*lines, more="", mesh=None):
  return collectives(program(*lines, more=more), mesh or cube())


@pytest.mark.parametrize(
    "groups, axes",
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", ("replica",)),
        ("[2,4]<=[4,2]T(1,0)", ("replica", "fsdp")),
        ("{{0,1,4,5},{2,3,6,7}}", ("replica", "tensor")),
        ("[1,8]<=[8]", AXES),
        ("{}", AXES),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1'}", ("fsdp",)),
        ("mesh['a'=2,'b'=4] {'a'}", ("replica",)),
        ("mesh['a'=4,'b'=1,'c'=2] {'a'}", ("replica", "fsdp")),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("replica", "tensor")),
        ("mesh['a'=8] {'a'}", AXES),
        ("mesh['a'=8] {'a':(1)2}", ("replica",)),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", ("replica", "tensor")),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("tensor",)),
        ("mesh['a'=2,'b'=4], device_ids=(0,2,1,3,4,6,5,7) {'a'}", ("replica",)),
        ("mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", ("replica",)),
    ],
)
def test_replica_groups_in_both_forms(groups, axes):
  (one,) = read(f"ROOT %a = f32[4]{{0}} all-reduce(%p), replica_groups={groups}, {SUM}")
  assert one.axes == axes and one.group == 2 ** len(axes)


def test_groups_in_an_unknown_form_are_refused():
  with pytest.raises(ValueError, match="unknown form"):
    read("ROOT %a = f32[4]{0} all-reduce(%p), replica_groups=ring(8), to_apply=%add")


def test_groups_of_one_send_nothing():
  assert read(f"ROOT %a = f32[4]{{0}} all-reduce(%p), replica_groups=[8,1]<=[8], {SUM}") == []


def test_asynchronous_pairs_are_one():
  """As the TPU's and the GPU's compilers write them, layouts and all."""
  found = read(
      "%p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)",
      f"%r = bf16[64,128]{{1,0:T(8,128)(2,1)S(1)}} all-reduce-start(%p), {OVER_TENSOR}",
      "%s = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-reduce-done(%r)",
      "%g = (bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[128,128]{1,0:T(8,128)(2,1)}) all-gather-start("
      "%s), replica_groups=[4,2]<=[8], dimensions={0}",
      "%h = bf16[128,128]{1,0} all-gather-done(%g)",
      "%c = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%h), "
      "source_target_pairs={{0,1},{1,0}}",
      "%d = f32[4]{0} collective-permute-done(%c)",
      "%t = ((f32[8,4]{1,0}), f32[4,4]{1,0}, u32[]) reduce-scatter-start(%d), "
      "replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add",
      "ROOT %u = f32[4,4]{1,0} reduce-scatter-done(%t)",
  )
  assert [(c.kind, c.dtype, c.bytes) for c in found] == [
      ("all-reduce", "bf16", 64 * 128 * 2), ("all-gather", "bf16", 128 * 128 * 2),
      ("collective-permute", "f32", 16), ("reduce-scatter", "f32", 8 * 4 * 4),
  ]
  assert {c.axes for c in found} == {("tensor",)}


def test_called_computations_are_followed_once():
  more = f"""\
      %wrapped (q: f32[4]) -> f32[4] {{
        %q = f32[4]{{0}} parameter(0)
        ROOT %inner = f32[4]{{0}} all-to-all(%q), replica_groups={{{{0,2}},{{1,3}},{{4,6}},{{5,7}}}}
      }}

      %fused (q: f32[4]) -> f32[4] {{
        ROOT %f = f32[4]{{0}} all-reduce(%q), {OVER_ALL}
      }}
  """
  found = read(
      "%s = ((f32[4]{0}), f32[4]{0}, s32[]) async-start(%p), calls=%wrapped",
      "%u = ((f32[4]{0}), f32[4]{0}, s32[]) async-update(%s), calls=%wrapped",
      "%d = f32[4]{0} async-done(%u), calls=%wrapped",
      "ROOT %r = f32[4]{0} fusion(%d), kind=kCustom, calls=%fused",
      more=more,
  )
  assert [(c.kind, c.axes, c.name) for c in found] == [
      ("all-to-all", ("fsdp",), "inner"), ("all-reduce", AXES, "f")
  ]


LOOP = f"""\
    %body (q: (s32[], f32[4])) -> (s32[], f32[4]) {{
      ROOT %r = f32[4]{{0}} all-reduce(%x), {OVER_ALL}
    }}

    %condition (q: (s32[], f32[4])) -> pred[] {{
      %limit = s32[]{{:T(128)}} constant(7)
      ROOT %less = pred[]{{:T(512)}} compare(%i, %limit), direction=LT
    }}
"""
WHILE = "ROOT %w = (s32[], f32[4]{0}) while(%t), condition=%condition, body=%body"


def test_a_loop_whose_count_the_compiler_knows():
  known = ', backend_config={"known_trip_count":{"n":"11"},"other":[]}'
  assert [c.count for c in read(WHILE + known, more=LOOP)] == [11]


def test_a_loop_whose_condition_compares_with_a_constant():
  assert [(c.count, c.counted) for c in read(WHILE, more=LOOP)] == [(7, True)]


def test_a_loop_that_nobody_can_count_counts_as_one_turn_and_is_marked():
  found = read(WHILE, more=LOOP.replace("constant(7)", "parameter(1)"))
  assert [(c.count, c.counted) for c in found] == [(1, False)]


def test_several_arrays_of_several_dtypes():
  found = read(
      "ROOT %a = (f32[4]{0}, bf16[2,3]{1,0}, /*index=2*/f32[10]{0}, pred[5]{0}) all-reduce(%p, %q, "
      f'%r, %s), {OVER_TENSOR}, metadata={{op_name="jit(f)/psum" stack_frame_id=3}}'
  )
  assert {(c.dtype, c.bytes) for c in found} == {("f32", 56), ("bf16", 12), ("pred", 5)}
  assert {(c.name, c.op) for c in found} == {("a", "jit(f)/psum")}


@pytest.mark.parametrize(
    "dtype, taken", [("s4", 5), ("f8e4m3fn", 10), ("bf16", 20), ("s32", 40), ("c64", 80)]
)
def test_bytes_of_dtypes(dtype, taken):
  (one,) = read(f"ROOT %a = {dtype}[10]{{0}} all-gather(%p), replica_groups=[4,2]<=[8]")
  assert (one.dtype, one.bytes) == (dtype, taken)


def test_between_slices():
  mesh = create_mesh(
      replica=None, fsdp=4, tensor=1, devices=imagined_devices(parse("v5e:2x4*2"))
  )
  assert dict(mesh.shape) == {"replica": 4, "fsdp": 4, "tensor": 1}
  line = "ROOT %a = f32[4]{0} all-reduce(%p), replica_groups=GROUPS, " + SUM
  over = lambda groups: read(line.replace("GROUPS", groups), mesh=mesh)[0]
  assert (over("[4,4]<=[16]").axes, over("[4,4]<=[16]").slices) == (("fsdp",), 1)
  across = over("[4,4]<=[4,4]T(1,0)")
  assert (across.axes, across.group, across.slices) == (("replica",), 4, 2)
  inside = over("{{0,4},{1,5},{2,6},{3,7},{8,12},{9,13},{10,14},{11,15}}")
  assert (inside.axes, inside.slices) == (("replica",), 1)


def test_a_transfer_between_slices_by_the_host():
  """As libtpu writes it: what was summed inside the slices is summed over them."""
  mesh = create_mesh(
      replica=None, fsdp=2, tensor=1, devices=imagined_devices(parse("v5e:2x2*2"))
  )
  transfer = (
      "%s = (f32[512,8]{1,0:T(8,128)}, u32[], token[]) send(%p, %t), channel_id=2, "
      'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
      '_xla_megascale_transfer_type="KIND"}'
  )
  found = read(
      "%r = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, dimensions={0}",
      transfer.replace("KIND", "ALL_REDUCE"),
      "%d = token[] send-done(%s), channel_id=2, is_host_transfer=true",
      transfer.replace("KIND", "ALL_GATHER"),
      "ROOT %q = (f32[4]{0}, u32[], token[]) send(%p, %t), is_host_transfer=true",
      mesh=mesh,
  )
  assert [(c.kind, c.bytes, c.axes, c.group, c.slices) for c in found] == [
      ("reduce-scatter", 4 * 16, ("replica", "fsdp"), 4, 1),
      ("all-reduce", 512 * 8 * 4, ("replica",), 2, 2),
      ("all-gather", 2 * 512 * 8 * 4, ("replica",), 2, 2),
  ]


def test_a_summary_adds_up_what_is_alike():
  one = Collective("all-reduce", "f32", 100, 3, ("fsdp",), 4, 1, "a", "")
  other = Collective("all-reduce", "f32", 10, 1, ("fsdp",), 4, 1, "b", "")
  apart = Collective("all-reduce", "bf16", 1000, 1, ("fsdp",), 4, 1, "c", "")
  assert summarize([one, other, apart]) == [
      {"kind": "all-reduce", "dtype": "bf16", "axes": ["fsdp"], "slices": 1, "instructions": 1,
       "executions": 1, "bytes": 1000},
      {"kind": "all-reduce", "dtype": "f32", "axes": ["fsdp"], "slices": 1, "instructions": 2,
       "executions": 4, "bytes": 310},
  ]

"""What is minimised: one file per objective, all of one shape.

An objective has
  `init(key, batch) -> (params, state)` and
  `loss(params, state, batch, key, step, train) -> (loss_sum, weight, metrics, state)`,
where metrics maps a name to (sum, count).  The training loop divides by the summed weight and does
not know which objective it runs.
"""

"""Save, verify, restore, fall back; preemption; what a run owns."""

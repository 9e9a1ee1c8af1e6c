"""What this machine can do and how a model runs on it: device, dtype, memory. Decisions are pure functions of facts."""

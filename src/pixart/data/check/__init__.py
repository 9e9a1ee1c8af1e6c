"""`pixart data check`: what a data set holds, what of it will be dropped and why, and what to do about it."""

"""What training will cost: FLOPs, memory, hours, money and CO2, before it begins."""

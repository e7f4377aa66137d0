"""Everything before the warehouse: the landing contract, reading files, making shops up."""

"""What takes the steps: AdamW, Muon, CAME and AdamW in 8 bits, behind one class."""

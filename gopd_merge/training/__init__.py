"""Making experts: RLVR, SFT, DPO and SeqKD by trl's trainers, on the quantised base."""

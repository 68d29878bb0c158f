"""The speculation gate on a virtual clock, where what speculation gains at each load is given."""

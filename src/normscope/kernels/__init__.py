"""The grouped operator, written once per device behind one contract."""

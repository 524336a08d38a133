"""Records in, text and pages out; nothing here measures anything or knows torch."""

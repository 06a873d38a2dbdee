"""The ring-0 stub and the ROM of a TCG engine process, as source and as assembled code."""

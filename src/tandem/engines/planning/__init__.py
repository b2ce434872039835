"""Who gets what memory and how many threads. Pure: what models need and what the machine has in, shares out."""

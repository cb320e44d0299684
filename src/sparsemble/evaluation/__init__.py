"""How robust, how sure, how costly, and whether to believe it."""

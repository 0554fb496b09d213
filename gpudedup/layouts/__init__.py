"""A study beside the manager: layouts of the bookkeeping of page sharing, and what each costs."""

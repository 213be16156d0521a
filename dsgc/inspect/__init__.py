"""Looking at what the compiler would do, did, and gave: tables, graphs, analyses, pages.

`dsgc.explain`, `dsgc.compare` and the methods `report`, `graph` and `record` of compiled modules
lead here; `analyses` has what people ask of a graph. See docs/inspect.md.
"""

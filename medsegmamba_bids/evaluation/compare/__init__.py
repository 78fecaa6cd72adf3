"""Any number of methods compared with a reference: tables, tests, figures and a page."""

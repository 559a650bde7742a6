"""Write docs/tables.md anew from the definitions of the tables; what stands before the first table is kept."""

from pathlib import Path

from fbmem_core.store.schemas import TABLES
from fbmem_core.store.views import VIEWS

PAGE = Path(__file__).with_name("tables.md")

if __name__ == "__main__":
    introduction = PAGE.read_text("utf-8").split("\n## ")[0].rstrip()
    PAGE.write_text(
        "\n\n".join([introduction, *(part.markdown() for part in (*VIEWS.values(), *TABLES.values()))]) + "\n", "utf-8"
    )

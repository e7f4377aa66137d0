"""What takes seconds to make and several files of tests look at: made once, changed by nobody."""

import dagster as dg
import pytest
from lines import line_in, why_it_failed, write_files, write_small_shop

OWN = "Zoë-hidden-7741"
HEADER = "user_id,product_id,event_type,event_ts,price,session_id,order_id,event_id,device\n"


@pytest.fixture(scope="session")
def small_line(tmp_path_factory):
    """A small shop and the version that the line makes of it, without gates, copies and reports.

    Of one customer, `own`, ids of visits and orders, further columns and broken lines tell who it
    is. Copy the folder to change anything: see `copy_of`.
    """
    line = line_in(tmp_path_factory.mktemp("small"))
    shop = line.settings.data
    write_small_shop(
        shop,
        file_format="mixed",
        dirt={"exact_duplicates": 0.01, "future_dates": 0.01, "late_files": 0.05},
    )
    (shop / "events" / "twin.parquet").write_bytes(
        (shop / "events" / "events_2024-01.parquet").read_bytes()
    )
    catalogue = (shop / "products" / "products.csv").read_text().splitlines()
    line.own, line.product = OWN, min(row.split(",")[0] for row in catalogue[1:])
    write_files(
        shop,
        events__own_csv=HEADER
        + "".join(
            f'{OWN},{line.product},{kind},2024-02-28 10:0{i}:00,9.5,"visit of {OWN}",'
            f"order-{OWN},event-{OWN}-{i},phone of {OWN}\n"
            for i, kind in enumerate(["view", "add_to_cart", "purchase"])
        )
        # Refused: no such product, no such day; and a line that cannot be read.
        + f"{OWN},no such product,view,2024-02-28,1,,,,\n"
        + f"{OWN},{line.product},purchase,no date,1,,,,\n"
        + f"{OWN},{line.product}\n",
        events__own_jsonl=f'{{"user_id": "{OWN}", "product_id"\n'
        f'{{"user_id": "{OWN}", "product_id": "{line.product}", "event_type": "view",'
        f' "ts": "2024-02-28", "mail": "{OWN}@example.com"}}\n',
        users__own_csv=f"user_id,country,e-mail,name\n{OWN},Elbonia,{OWN}@example.com,Zoë {OWN}\n",
    )
    candidate = dg.AssetSelection.assets(["serving", "candidate"])
    needed = candidate.upstream().required_multi_asset_neighbors()
    result = line.run(needed | dg.AssetSelection.groups("staging"), has_gates=False)
    assert result.success, why_it_failed(result)
    return line

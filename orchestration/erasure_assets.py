"""Erasing users who asked for it, with a certificate each."""

import dagster as dg

from exports import erasure, pseudonyms
from exports.assets import Publishing
from exports.errors import PseudonymError, PublishError
from exports.origins import has_table
from ml_assets.warehouse import Warehouse, now
from orchestration.landing.contract import LandingError
from orchestration.landing.erasure import read_requests
from orchestration.settings import Settings


@dg.asset(
    key=["raw", "erasure_certificates"],
    group_name="erasure",
    kinds={"duckdb", "file", "redis"},
)
def erasure_certificates(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
    publishing: dg.ResourceParam[Publishing],
) -> dg.MaterializeResult:
    """Take the users of erasures/*.csv out of all tables, files and Redis; certify each."""
    happened_at = now()
    try:
        requests = read_requests(settings.data)
        with warehouse.connect() as connection:
            if requests and not has_table(connection, "raw", "events"):
                raise LandingError(
                    f"{len(requests):,} users ask to be erased, but nothing has landed in "
                    f"{warehouse.path}. Set RECMART_HOME to the home of their shop; if this is a "
                    "new one, run daily_recommendations first."
                )
            pseudonyms.create_table(connection)
            key, check = settings.pseudonym_key, pseudonyms.found_check(connection)
            pseudonyms.require_key(check, key, place="This warehouse")
            if key is not None:
                requests = [pseudonyms.pseudonym(user_id, key) for user_id in requests]
            user_ids = erasure.pending(connection, requests)
        if not user_ids:
            return dg.MaterializeResult(
                metadata={"requests": len(requests), "erased_now": 0, "note": "nothing to do"}
            )
        context.log.info(f"erasing {len(user_ids):,} of {len(requests):,} users who asked for it")
        kept = erasure.Kept(
            home=settings.home,
            published_dir=publishing.published,
            redis_url=publishing.connect_redis(),
            is_embedded=publishing.redis_url == "embedded",
        )
        with warehouse.connect() as connection:
            erasure.erase_users(connection, user_ids, kept, happened_at=happened_at)
        erasure.compact(warehouse.path)
        with warehouse.connect() as connection:
            certificates = erasure.certify(connection, user_ids, kept, happened_at=happened_at)
    except (LandingError, PseudonymError, PublishError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
    return dg.MaterializeResult(
        metadata={
            "requests": len(requests),
            "erased_now": len(user_ids),
            "places_per_user": len(next(iter(certificates.values()))),
            "certificates": dg.MetadataValue.path(str(settings.home / "erasures")),
        }
    )

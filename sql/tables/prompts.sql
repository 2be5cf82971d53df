-- Grain: one duplicate group that is drawn to be tried.
-- Source: group_captions. Parameters: $max_prompts, $seed.
-- Strata are group sizes by powers of two. Each may take an equal share of what is left, the one of the fewest groups
-- first (of equal ones the most duplicated): small strata are taken whole and what they leave falls to the others, so
-- that the budget is used up, and groups of one get a share. With fewer prompts than strata, the most duplicated get
-- one each, and the rates say nothing of the others: groups_left_out counts these.
-- Inside a stratum the draw is by hash; its probability is known, so that rates can be weighted.
WITH RECURSIVE candidates AS (
    SELECT
        group_id,
        sample_id,
        n_duplicates,
        text,
        CAST(ceil(log2(n_duplicates)) AS INTEGER) AS stratum_order
    FROM group_captions
    WHERE text IS NOT NULL
),

sizes AS (
    SELECT stratum_order, count(*) AS groups, count(*) OVER () AS strata
    FROM candidates
    GROUP BY stratum_order
),

strata AS (
    SELECT
        *,
        row_number() OVER (
            ORDER BY CASE WHEN $max_prompts < strata THEN 0 ELSE groups END, stratum_order DESC
        ) AS rank
    FROM sizes
),

-- taken: of the stratum of this rank; remaining: for the ranks after it.
allocation AS (
    SELECT
        0 AS rank,
        CAST(NULL AS INTEGER) AS stratum_order,
        0 AS groups,
        0 AS taken,
        CAST($max_prompts AS BIGINT) AS remaining
    UNION ALL
    SELECT
        strata.rank, strata.stratum_order, strata.groups, share.taken, allocation.remaining - share.taken
    FROM allocation
    JOIN strata ON strata.rank = allocation.rank + 1
    CROSS JOIN LATERAL (
        SELECT least(strata.groups, greatest(
            least(1, allocation.remaining), allocation.remaining // (strata.strata - strata.rank + 1)
        )) AS taken
    ) AS share
),

ranked AS (
    SELECT
        candidates.*,
        row_number() OVER (
            PARTITION BY stratum_order ORDER BY sha256(concat($seed, ':', group_id)), group_id
        ) AS place
    FROM candidates
),

final AS (
    SELECT
        ranked.text,
        ranked.sample_id,
        ranked.group_id,
        ranked.n_duplicates,
        CASE
            WHEN ranked.stratum_order <= 1 THEN CAST(1 << ranked.stratum_order AS VARCHAR)
            ELSE concat((1 << (ranked.stratum_order - 1)) + 1, '-', 1 << ranked.stratum_order)
        END AS stratum,
        ranked.stratum_order,
        allocation.taken / allocation.groups AS inclusion_probability,
        (SELECT CAST(coalesce(sum(groups), 0) AS BIGINT) FROM allocation WHERE taken = 0) AS groups_left_out
    FROM ranked
    JOIN allocation ON allocation.stratum_order = ranked.stratum_order
    WHERE ranked.place <= allocation.taken
)

SELECT * FROM final
ORDER BY n_duplicates DESC, group_id

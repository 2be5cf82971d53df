-- Grain: one duplicate group that is drawn to be tried.
-- Source: duplicate_groups, samples. Parameters: $max_prompts, $seed.
-- Strata are group sizes by powers of two. From the most duplicated down, each stratum may take an equal share of what is
-- left: small strata are taken whole, what they leave falls to the lower ones, and groups of one always get a share.
-- Inside a stratum the draw is by hash; its probability is known, so that rates can be weighted.
WITH RECURSIVE candidates AS (
    SELECT
        duplicate_groups.group_id,
        duplicate_groups.representative AS sample_id,
        duplicate_groups.size AS n_duplicates,
        strip.text,
        CAST(ceil(log2(duplicate_groups.size)) AS INTEGER) AS stratum_order
    FROM duplicate_groups
    JOIN samples ON samples.sample_id = duplicate_groups.representative
    -- trim() knows the space alone; a caption of tabs or of no-break spaces is blank too.
    CROSS JOIN LATERAL (
        SELECT regexp_replace(samples.caption, '^[\s\p{Z}]+|[\s\p{Z}]+$', '', 'g') AS text
    ) AS strip
    WHERE duplicate_groups.sample_id = duplicate_groups.representative
      AND coalesce(strip.text, '') <> ''
),

strata AS (
    SELECT
        stratum_order,
        count(*) AS groups,
        row_number() OVER (ORDER BY stratum_order DESC) AS rank,
        count(*) OVER () AS strata
    FROM candidates
    GROUP BY stratum_order
),

allocation AS (
    SELECT
        rank, stratum_order, groups, strata,
        least(groups, greatest(least(1, $max_prompts), $max_prompts // strata)) AS taken,
        $max_prompts - least(groups, greatest(least(1, $max_prompts), $max_prompts // strata)) AS remaining
    FROM strata
    WHERE rank = 1
    UNION ALL
    SELECT
        strata.rank, strata.stratum_order, strata.groups, strata.strata,
        least(strata.groups, greatest(
            least(1, allocation.remaining), allocation.remaining // (strata.strata - strata.rank + 1)
        )),
        allocation.remaining - least(strata.groups, greatest(
            least(1, allocation.remaining), allocation.remaining // (strata.strata - strata.rank + 1)
        ))
    FROM allocation
    JOIN strata ON strata.rank = allocation.rank + 1
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
        allocation.taken / allocation.groups AS inclusion_probability
    FROM ranked
    JOIN allocation ON allocation.stratum_order = ranked.stratum_order
    WHERE ranked.place <= allocation.taken
)

SELECT * FROM final
ORDER BY n_duplicates DESC, group_id

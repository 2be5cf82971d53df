-- Grain: the audit.
-- Source: generations, extractions, audits. A network evaluation is one pass of one picture through the network: with
-- classifier-free guidance (a scale over 1) each step takes two. Finished generations have neither steps nor seconds.
WITH made AS (
    SELECT
        count(*) AS attempts,
        count(*) FILTER (status = 'success') AS images_made,
        count(*) FILTER (kept) AS images_stored,
        CAST(sum(steps * CASE WHEN guidance_scale > 1 THEN 2 ELSE 1 END) FILTER (status <> 'failed') AS BIGINT)
            AS network_evaluations,
        -- As decimals, whose sum is the same in any order.
        CAST(sum(CAST(seconds AS DECIMAL(18, 6))) AS DOUBLE) AS device_seconds
    FROM generations
),

found AS (
    SELECT count(*) AS images_copied FROM extractions WHERE copied
),

final AS (
    SELECT
        made.*,
        found.images_copied,
        made.images_made / nullif(found.images_copied, 0) AS images_made_per_copied_image,
        made.images_stored / nullif(found.images_copied, 0) AS images_stored_per_copied_image,
        made.network_evaluations / nullif(found.images_copied, 0) AS network_evaluations_per_copied_image,
        made.device_seconds / nullif(found.images_copied, 0) AS device_seconds_per_copied_image
    FROM made
    CROSS JOIN found
)

SELECT * FROM final

-- Grain: one prompt that mitigations are tried on.
-- Source: prompts, matches, copy_calibration (is_copy says what a copy is). Of each class up to $prompts_per_class,
-- drawn by hash: copied, whose nearest generation is a copy of their own image; not_copied; and never_seen, captions of
-- controls. What was forgotten, or has no image of its own that was compared, is in none.
WITH judged AS (
    SELECT
        matches.prompt_id,
        bool_or(is_copy(matches, copy_calibration)) AS copied
    FROM matches
    CROSS JOIN copy_calibration
    WHERE matches.nearest AND matches.relation = 'own'
    GROUP BY matches.prompt_id
),

classes AS (
    SELECT
        prompts.prompt_id,
        prompts.text,
        prompts.sample_id,
        coalesce(prompts.group_id, prompts.sample_id) AS own_group,
        prompts.images_requested,
        CASE
            WHEN prompts.origin = 'control' THEN 'never_seen'
            WHEN judged.copied THEN 'copied'
            ELSE 'not_copied'
        END AS class
    FROM prompts
    JOIN judged USING (prompt_id)
    WHERE prompts.sample_id IS NOT NULL
        AND (prompts.group_id IS NOT NULL OR prompts.origin = 'control')
        AND prompts.stratum <> 'forgotten'
),

final AS (
    SELECT *
    FROM classes
    QUALIFY row_number() OVER (PARTITION BY class ORDER BY sha256('mitigate' || prompt_id)) <= $prompts_per_class
)

SELECT * FROM final
ORDER BY class, prompt_id

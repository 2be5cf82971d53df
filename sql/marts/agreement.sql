-- Grain: one pair of rules (a rule and itself too), over the prompts that have an image of their own.
-- Source: verdicts; training_matches (staging). Each rule is asked about the prompt's nearest generation and its own
-- image: l2 (l2 <= delta), adaptive_l2 (<= 1), ratio (< 1/3), copied, seen, extracted_calibrated. Without controls the
-- last two say nothing, and have no rows.
WITH asked AS (
    SELECT
        verdicts.prompt_id,
        coalesce(own.extracted, false) AS by_l2,
        coalesce(own.by_adaptive_l2, false) AS by_adaptive_l2,
        coalesce(own.by_ratio, false) AS by_ratio,
        verdicts.copied,
        verdicts.seen,
        verdicts.extracted_calibrated
    FROM verdicts
    LEFT JOIN training_matches AS own
        ON own.prompt_id = verdicts.prompt_id AND own.nearest AND own.relation = 'own'
    WHERE verdicts.copied IS NOT NULL AND verdicts.stratum <> 'forgotten'
),

calls AS (
    SELECT prompt_id, 'l2' AS rule, by_l2 AS called FROM asked
    UNION ALL SELECT prompt_id, 'adaptive_l2', by_adaptive_l2 FROM asked
    UNION ALL SELECT prompt_id, 'ratio', by_ratio FROM asked
    UNION ALL SELECT prompt_id, 'copied', copied FROM asked
    UNION ALL SELECT prompt_id, 'seen', seen FROM asked WHERE seen IS NOT NULL
    UNION ALL SELECT prompt_id, 'extracted_calibrated', extracted_calibrated FROM asked
        WHERE extracted_calibrated IS NOT NULL
),

final AS (
    SELECT
        first.rule,
        second.rule AS other,
        count(*) AS prompts,
        count(*) FILTER (first.called AND second.called) AS both,
        count(*) FILTER (first.called AND NOT second.called) AS only_rule,
        count(*) FILTER (NOT first.called AND second.called) AS only_other,
        count(*) FILTER (NOT first.called AND NOT second.called) AS neither
    FROM calls AS first
    JOIN calls AS second ON second.prompt_id = first.prompt_id
    GROUP BY ALL
)

SELECT * FROM final
ORDER BY
    list_position(['l2', 'adaptive_l2', 'ratio', 'copied', 'seen', 'extracted_calibrated'], rule),
    list_position(['l2', 'adaptive_l2', 'ratio', 'copied', 'seen', 'extracted_calibrated'], other)

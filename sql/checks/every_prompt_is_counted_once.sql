-- A prompt that fell out of a denominator, or is in it twice.
SELECT counted.prompts, tried.dimension, tried.prompts AS prompts_tried
FROM (SELECT count(*) AS prompts FROM prompts WHERE origin <> 'control') AS counted
CROSS JOIN (
    SELECT wanted.dimension, CAST(coalesce(sum(extraction_rate.prompts_tried), 0) AS BIGINT) AS prompts
    FROM (SELECT unnest(['all', 'duplicates']) AS dimension) AS wanted
    LEFT JOIN extraction_rate ON extraction_rate.dimension = wanted.dimension
    GROUP BY wanted.dimension
) AS tried
WHERE counted.prompts <> tried.prompts

-- A prompt that fell out of the denominator, or is in it twice.
SELECT counted.prompts, tried.prompts AS prompts_tried
FROM (SELECT count(*) AS prompts FROM prompts WHERE origin <> 'control') AS counted
CROSS JOIN (SELECT CAST(coalesce(sum(prompts_tried), 0) AS BIGINT) AS prompts FROM extraction_rate) AS tried
WHERE counted.prompts <> tried.prompts

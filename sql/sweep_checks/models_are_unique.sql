-- A model is one row.
SELECT model_id, count(*) AS rows FROM models GROUP BY ALL HAVING count(*) > 1

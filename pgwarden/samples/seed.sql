-- The same rows on every machine.
INSERT INTO public.customers (name, city, since)
SELECT 'Customer ' || n,
       (ARRAY['Bergen', 'Cork', 'Ghent', 'Graz', 'Porto', 'Turku', 'Utrecht'])[1 + n % 7],
       date '2019-01-01' + (n * 37) % 1800
FROM generate_series(1, 500) AS n;

INSERT INTO public.products (name, price)
SELECT (ARRAY['Lamp', 'Chair', 'Table', 'Shelf', 'Clock', 'Vase', 'Rug', 'Mirror'])[1 + n % 8] || ' ' || n, 5 + (n * 13) % 200
FROM generate_series(1, 80) AS n;

INSERT INTO public.orders (customer, product, quantity, amount, ordered_on)
SELECT 1 + (n * 31) % 500, products.id, 1 + n % 4, products.price * (1 + n % 4), date '2025-01-01' + n % 365
FROM generate_series(1, 5000) AS n
JOIN public.products ON products.id = 1 + (n * 7) % 80;

INSERT INTO public.payroll (employee, salary)
SELECT 'Employee ' || n, 2400 + (n * 217) % 3100
FROM generate_series(1, 40) AS n;

ANALYZE;

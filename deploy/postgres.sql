CREATE ROLE warden LOGIN PASSWORD '@password@';
CREATE DATABASE shop;
\connect shop
CREATE TABLE public.orders (id bigserial PRIMARY KEY, customer text NOT NULL, amount numeric(12, 2) NOT NULL);
CREATE TABLE public.salaries (person text PRIMARY KEY, amount numeric(12, 2) NOT NULL);
INSERT INTO public.orders (customer, amount) SELECT 'customer ' || n, n * 10 FROM generate_series(1, 100) AS n;
GRANT SELECT, INSERT ON public.orders TO warden;
GRANT SELECT ON public.salaries TO warden;
GRANT USAGE ON SEQUENCE public.orders_id_seq TO warden;

"""Which relations of pg_catalog and information_schema an agent with introspection may read: a table.

Not those that hold credentials (pg_authid, pg_shadow, pg_user_mapping, pg_foreign_server, pg_subscription), values of columns
(pg_statistic, pg_stats, pg_largeobject), other sessions' statements (pg_stat_activity, pg_prepared_xacts, pg_cursors) or settings
(pg_settings, an UPDATE of which is a SET).
"""

from __future__ import annotations

from typing import Final


def _table(words: str) -> frozenset[str]:
    return frozenset(words.split())


READABLE: Final[dict[str, frozenset[str]]] = {
    "pg_catalog": _table(
        """
        pg_aggregate pg_am pg_amop pg_amproc pg_attrdef pg_attribute pg_available_extensions pg_cast pg_class pg_collation
        pg_constraint pg_conversion pg_database pg_default_acl pg_depend pg_description pg_enum pg_extension pg_foreign_table
        pg_index pg_indexes pg_inherits pg_language pg_matviews pg_namespace pg_opclass pg_operator pg_opfamily
        pg_partitioned_table pg_policies pg_policy pg_proc pg_publication pg_publication_namespace pg_publication_rel
        pg_publication_tables pg_range pg_rewrite pg_roles pg_rules pg_sequence pg_sequences pg_shdescription
        pg_statistic_ext pg_tables pg_tablespace pg_timezone_abbrevs pg_timezone_names pg_trigger pg_ts_config pg_ts_config_map
        pg_ts_dict pg_ts_parser pg_ts_template pg_type pg_views
        """
    ),
    "information_schema": _table(
        """
        attributes character_sets check_constraint_routine_usage check_constraints collation_character_set_applicability
        collations column_column_usage column_domain_usage column_privileges column_udt_usage columns constraint_column_usage
        constraint_table_usage data_type_privileges domain_constraints domain_udt_usage domains element_types
        information_schema_catalog_name key_column_usage parameters referential_constraints routine_column_usage
        routine_privileges routine_routine_usage routine_sequence_usage routine_table_usage routines schemata sequences
        sql_features sql_implementation_info sql_parts sql_sizing table_constraints table_privileges tables transforms
        triggered_update_columns triggers udt_privileges usage_privileges user_defined_types view_column_usage
        view_routine_usage view_table_usage views
        """
    ),
}

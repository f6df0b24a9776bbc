"""The nodes of a PostgreSQL 18 parse tree that `ingest.sql` looks into, and what is in each of their fields.

A node type or a field that does not stand here is a refusal. Some fields of a known node are left out on purpose: tablespaces,
access methods, owners, `%TYPE`, files and programs.
"""

from __future__ import annotations

from typing import Final

LEAF: Final = ""  # a value: nothing to look into
NODE: Final = "*"  # a node under its type's name, or a list of such
OWN: Final = "!"  # read by the handler of the node in `ingest.sql`; without a handler it would go unseen


def _node(leaf: str = "", nodes: str = "", own: str = "", **typed: str) -> dict[str, str]:
    """`typed`: libpg_query writes a field of one certain type without the type's name around it."""
    fields = {"location": LEAF, **typed}
    fields.update(dict.fromkeys(leaf.split(), LEAF))
    fields.update(dict.fromkeys(nodes.split(), NODE))
    fields.update(dict.fromkeys(own.split(), OWN))
    return fields


FIELDS: Final[dict[str, dict[str, str]]] = {
    "List": _node(nodes="items"),
    "A_ArrayExpr": _node(leaf="list_start list_end", nodes="elements"),
    "A_Const": _node(leaf="isnull ival fval sval bsval boolval"),
    "A_Expr": _node(leaf="kind rexpr_list_start rexpr_list_end", nodes="lexpr rexpr", own="name"),
    "A_Indices": _node(leaf="is_slice", nodes="lidx uidx"),
    "A_Indirection": _node(nodes="arg", own="indirection"),
    "A_Star": _node(),
    "Alias": _node(leaf="aliasname", nodes="colnames"),
    "BitString": _node(leaf="bsval"),
    "BoolExpr": _node(leaf="boolop", nodes="args"),
    "Boolean": _node(leaf="boolval"),
    "BooleanTest": _node(leaf="booltesttype", nodes="arg"),
    "CTECycleClause": _node(leaf="cycle_mark_column cycle_path_column", nodes="cycle_col_list cycle_mark_value cycle_mark_default"),
    "CTESearchClause": _node(leaf="search_breadth_first search_seq_column", nodes="search_col_list"),
    "CaseExpr": _node(nodes="arg args defresult"),
    "CaseWhen": _node(nodes="expr result"),
    "CoalesceExpr": _node(nodes="args"),
    "CollateClause": _node(nodes="arg collname"),
    "ColumnDef": _node(
        leaf="colname compression is_local is_not_null storage storage_name identity generated",
        nodes="raw_default constraints",
        typeName="TypeName",
        collClause="CollateClause",
    ),
    "ColumnRef": _node(own="fields"),
    "CommonTableExpr": _node(
        leaf="ctename ctematerialized",
        nodes="aliascolnames ctequery",
        search_clause="CTESearchClause",
        cycle_clause="CTECycleClause",
    ),
    "Constraint": _node(
        leaf="""
            contype conname deferrable initdeferred is_enforced skip_validation initially_valid is_no_inherit
            generated_when generated_kind nulls_not_distinct without_overlaps indexname reset_default_tblspc access_method
            fk_with_period pk_with_period fk_matchtype fk_upd_action fk_del_action
        """,
        nodes="raw_expr keys including options where_clause fk_attrs pk_attrs fk_del_set_cols",
        own="pktable exclusions",
    ),
    "CurrentOfExpr": _node(leaf="cursor_name"),
    "DefElem": _node(leaf="defnamespace defaction arg_location", own="defname arg"),
    "Float": _node(leaf="fval"),
    "FuncCall": _node(
        leaf="agg_within_group agg_star agg_distinct func_variadic funcformat",
        nodes="args agg_order agg_filter",
        own="funcname",
        over="WindowDef",
    ),
    "GroupingFunc": _node(nodes="args"),
    "GroupingSet": _node(leaf="kind", nodes="content"),
    "IndexElem": _node(leaf="name indexcolname ordering nulls_ordering", nodes="expr collation opclass opclassopts"),
    "InferClause": _node(leaf="conname", nodes="indexElems whereClause"),
    "Integer": _node(leaf="ival"),
    "IntoClause": _node(leaf="onCommit skipData", nodes="colNames options", own="rel"),
    "JoinExpr": _node(leaf="jointype isNatural", nodes="larg rarg usingClause quals", join_using_alias="Alias", alias="Alias"),
    "JsonAggConstructor": _node(nodes="agg_filter agg_order", output="JsonOutput", over="WindowDef"),
    "JsonArgument": _node(leaf="name", val="JsonValueExpr"),
    "JsonArrayAgg": _node(leaf="absent_on_null", constructor="JsonAggConstructor", arg="JsonValueExpr"),
    "JsonArrayConstructor": _node(leaf="absent_on_null", nodes="exprs", output="JsonOutput"),
    "JsonArrayQueryConstructor": _node(leaf="absent_on_null", nodes="query", output="JsonOutput", format="JsonFormat"),
    "JsonBehavior": _node(leaf="btype coerce", nodes="expr"),
    "JsonFormat": _node(leaf="format_type encoding"),
    "JsonFuncExpr": _node(
        leaf="op column_name wrapper quotes",
        nodes="pathspec passing",
        context_item="JsonValueExpr",
        output="JsonOutput",
        on_empty="JsonBehavior",
        on_error="JsonBehavior",
    ),
    "JsonIsPredicate": _node(leaf="item_type unique_keys", nodes="expr", format="JsonFormat"),
    "JsonKeyValue": _node(nodes="key", value="JsonValueExpr"),
    "JsonObjectAgg": _node(leaf="absent_on_null unique", constructor="JsonAggConstructor", arg="JsonKeyValue"),
    "JsonObjectConstructor": _node(leaf="absent_on_null unique", nodes="exprs", output="JsonOutput"),
    "JsonOutput": _node(typeName="TypeName", returning="JsonReturning"),
    "JsonParseExpr": _node(leaf="unique_keys", expr="JsonValueExpr", output="JsonOutput"),
    "JsonReturning": _node(leaf="typmod", format="JsonFormat"),
    "JsonScalarExpr": _node(nodes="expr", output="JsonOutput"),
    "JsonSerializeExpr": _node(expr="JsonValueExpr", output="JsonOutput"),
    "JsonTable": _node(
        leaf="lateral",
        nodes="passing columns",
        context_item="JsonValueExpr",
        pathspec="JsonTablePathSpec",
        on_error="JsonBehavior",
        alias="Alias",
    ),
    "JsonTableColumn": _node(
        leaf="coltype name wrapper quotes",
        nodes="columns",
        typeName="TypeName",
        pathspec="JsonTablePathSpec",
        format="JsonFormat",
        on_empty="JsonBehavior",
        on_error="JsonBehavior",
    ),
    "JsonTablePathSpec": _node(leaf="name name_location", nodes="string"),
    "JsonValueExpr": _node(nodes="raw_expr", format="JsonFormat"),
    "LockingClause": _node(leaf="strength waitPolicy", own="lockedRels"),
    "MergeSupportFunc": _node(leaf="msftype"),
    "MergeWhenClause": _node(leaf="matchKind override", nodes="condition targetList values", own="commandType"),
    "MinMaxExpr": _node(leaf="op", nodes="args"),
    "MultiAssignRef": _node(leaf="colno ncolumns", nodes="source"),
    "NamedArgExpr": _node(leaf="name argnumber", nodes="arg"),
    "NullTest": _node(leaf="nulltesttype argisrow", nodes="arg"),
    "OnConflictClause": _node(nodes="targetList whereClause", own="action", infer="InferClause"),
    "ParamRef": _node(leaf="number"),
    "PartitionBoundSpec": _node(leaf="strategy is_default modulus remainder", nodes="listdatums lowerdatums upperdatums"),
    "PartitionCmd": _node(leaf="concurrent", own="name", bound="PartitionBoundSpec"),
    "PartitionElem": _node(leaf="name", nodes="expr collation opclass"),
    "PartitionRangeDatum": _node(leaf="kind", nodes="value"),
    "PartitionSpec": _node(leaf="strategy", nodes="partParams"),
    "RangeFunction": _node(leaf="lateral ordinality is_rowsfrom", nodes="functions coldeflist", alias="Alias"),
    "RangeSubselect": _node(leaf="lateral", nodes="subquery", alias="Alias"),
    "RangeTableFunc": _node(leaf="lateral", nodes="docexpr rowexpr namespaces columns", alias="Alias"),
    "RangeTableFuncCol": _node(leaf="colname for_ordinality is_not_null", nodes="colexpr coldefexpr", typeName="TypeName"),
    "RangeTableSample": _node(nodes="relation args repeatable", own="method"),
    "RangeVar": _node(leaf="inh", own="catalogname schemaname relname relpersistence", alias="Alias"),
    "ResTarget": _node(leaf="name", nodes="indirection val"),
    "ReturningClause": _node(nodes="options exprs"),
    "ReturningOption": _node(leaf="option value"),
    "RowExpr": _node(leaf="row_format", nodes="args colnames"),
    "SQLValueFunction": _node(leaf="op typmod"),
    "SetToDefault": _node(leaf="typeMod"),
    "SortBy": _node(leaf="sortby_dir sortby_nulls", nodes="node", own="useOp"),
    "String": _node(leaf="sval"),
    "SubLink": _node(leaf="subLinkType", nodes="testexpr subselect", own="operName"),
    "TableLikeClause": _node(leaf="options", own="relation"),
    "TypeCast": _node(nodes="arg", typeName="TypeName"),
    "TypeName": _node(leaf="typemod", nodes="typmods arrayBounds", own="names"),
    "WindowDef": _node(leaf="name refname frameOptions", nodes="partitionClause orderClause startOffset endOffset"),
    "WithClause": _node(own="ctes recursive"),
    "XmlExpr": _node(leaf="op name xmloption indent typmod", nodes="named_args arg_names args"),
    "XmlSerialize": _node(leaf="xmloption indent", nodes="expr", typeName="TypeName"),
    "SelectStmt": _node(
        leaf="groupDistinct limitOption op all",
        nodes="""
            distinctClause targetList fromClause whereClause groupClause havingClause windowClause valuesLists sortClause
            limitOffset limitCount
        """,
        own="withClause intoClause lockingClause",
        larg="SelectStmt",
        rarg="SelectStmt",
    ),
    "InsertStmt": _node(
        leaf="override",
        nodes="cols selectStmt",
        own="relation withClause onConflictClause",
        returningClause="ReturningClause",
    ),
    "UpdateStmt": _node(nodes="whereClause fromClause", own="relation withClause targetList", returningClause="ReturningClause"),
    "DeleteStmt": _node(nodes="usingClause whereClause", own="relation withClause", returningClause="ReturningClause"),
    "MergeStmt": _node(
        nodes="sourceRelation joinCondition mergeWhenClauses", own="relation withClause", returningClause="ReturningClause"
    ),
    "CopyStmt": _node(nodes="query attlist options whereClause", own="relation is_from"),
    "ExplainStmt": _node(nodes="options", own="query"),
    "PrepareStmt": _node(nodes="argtypes", own="name query"),
    "ExecuteStmt": _node(nodes="params", own="name"),
    "DeallocateStmt": _node(own="name isall"),
    "DeclareCursorStmt": _node(nodes="query", own="portalname options"),
    "FetchStmt": _node(leaf="direction howMany ismove", own="portalname"),
    "ClosePortalStmt": _node(own="portalname"),
    "TransactionStmt": _node(leaf="savepoint_name chain", own="kind options"),
    "ListenStmt": _node(own="conditionname"),
    "NotifyStmt": _node(leaf="payload payload_location", own="conditionname"),
    "UnlistenStmt": _node(own="conditionname"),
    "VariableSetStmt": _node(leaf="jumble_args is_local", own="kind name args"),
    "VariableShowStmt": _node(own="name"),
    "DiscardStmt": _node(own="target"),
    "ConstraintsSetStmt": _node(leaf="deferred", own="constraints"),
    "CreateStmt": _node(
        leaf="oncommit if_not_exists",
        nodes="tableElts options",
        own="relation inhRelations",
        partbound="PartitionBoundSpec",
        partspec="PartitionSpec",
        ofTypename="TypeName",
    ),
    "CreateTableAsStmt": _node(leaf="objtype is_select_into if_not_exists", own="into query"),
    "AlterTableStmt": _node(leaf="missing_ok", own="relation objtype cmds"),
    "AlterTableCmd": _node(leaf="name missing_ok", own="def subtype behavior"),
    "DropStmt": _node(leaf="missing_ok concurrent", own="objects removeType behavior"),
    "IndexStmt": _node(
        leaf="""
            idxname accessMethod unique nulls_not_distinct primary isconstraint iswithoutoverlaps deferrable initdeferred
            concurrent if_not_exists reset_default_tblspc
        """,
        nodes="indexParams indexIncludingParams options whereClause",
        own="relation excludeOpNames",
    ),
    "ViewStmt": _node(leaf="replace withCheckOption", nodes="aliases query options", own="view"),
    "CreateSeqStmt": _node(leaf="if_not_exists", nodes="options", own="sequence"),
    "AlterSeqStmt": _node(leaf="missing_ok", nodes="options", own="sequence"),
    "RenameStmt": _node(leaf="subname missing_ok", own="relation object renameType relationType newname behavior"),
    "AlterObjectSchemaStmt": _node(leaf="missing_ok", own="relation object objectType newschema"),
    "TruncateStmt": _node(leaf="restart_seqs", own="relations behavior"),
    "CallStmt": _node(own="funccall"),
    "CreateSchemaStmt": _node(leaf="if_not_exists", own="schemaname"),
    "CreateEnumStmt": _node(nodes="vals", own="typeName"),
    "AlterEnumStmt": _node(leaf="oldVal newVal newValNeighbor newValIsAfter skipIfNewValExists", own="typeName"),
    "CompositeTypeStmt": _node(nodes="coldeflist", own="typevar"),
    "CreateDomainStmt": _node(nodes="constraints", own="domainname", typeName="TypeName", collClause="CollateClause"),
    "CommentStmt": _node(leaf="comment", own="object objtype"),
    "RefreshMatViewStmt": _node(leaf="concurrent skipData", own="relation"),
    "VacuumStmt": _node(leaf="is_vacuumcmd", nodes="options rels"),
    "VacuumRelation": _node(nodes="va_cols", own="relation"),
    "ReindexStmt": _node(nodes="params", own="relation kind"),
}
